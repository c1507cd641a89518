"""A package that brings one method of every kind to hydraprune, by entry points alone."""
