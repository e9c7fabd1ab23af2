"""Python as it starts where neither this package nor metatrain is installed."""

import sys

FORBIDDEN = (
    "metatrain",
    "metatrain_lorem",
    "_metatrain_lorem_registration",
    "sphericart",
    "spex",
    "mace",
    "e3nn",
    "torchpme",
)


class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(name + " is blocked")


for name in FORBIDDEN:
    sys.modules.pop(name, None)
sys.meta_path = [f for f in sys.meta_path if f.__module__ != "_metatrain_lorem_registration"]
sys.meta_path.insert(0, Blocker)
