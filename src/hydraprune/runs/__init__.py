"""Run folders: who writes in them, and what is read from them."""
