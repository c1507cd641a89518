"""The image sizes that a network can take."""

from hydraprune.core.errors import SpecError


def require_side(net: str, image_size: int, least: int) -> None:
    """Refuse square images whose side is below `least`, the product of the network's strides.

    Raises:
        SpecError: naming the size and the smallest that works.
    """
    if image_size < least:
        raise SpecError(
            f"{net} cannot take {image_size}x{image_size} images; it needs at least {least}x{least}: "
            "enlarge the images or choose a net with fewer strides, such as cnn_digits"
        )
