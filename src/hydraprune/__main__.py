"""`python -m hydraprune`, the same as `hydraprune`."""

import sys

if __name__ == "__main__":
    # `-m` puts the working directory first, and with it whatever modules lie there; `hydraprune` does not.
    if not sys.flags.safe_path:
        del sys.path[0]
    from hydraprune.cli import main

    main()
