"""Commands of ``python -m metatrain_lorem``."""
