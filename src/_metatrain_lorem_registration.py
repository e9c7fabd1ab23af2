"""Make metatrain find ``metatrain_lorem`` as its architecture ``lorem``.

metatrain (2026.4) knows the architectures in its own folder only: it imports
``metatrain.<name>``, and takes a checkpoint when ``find_all_architectures()`` lists its
architecture. ``metatrain_lorem.pth`` imports this module whenever Python starts, so that

* ``metatrain.lorem`` and its submodules *are* the modules of ``metatrain_lorem``, the same
  objects under a second name;
* ``metatrain.utils.architectures`` lists ``lorem``;
* ``metatrain_lorem.integration`` and ``integration_eval`` can mend what metatrain gets wrong in
  runs of ``lorem``.

All this happens when metatrain is imported. Before that nothing but :py:mod:`sys` may be touched
here: every Python of the environment pays for this file, with or without metatrain.
"""

import sys

ALIAS = "metatrain.lorem"
PACKAGE = "metatrain_lorem"
REGISTRY = "metatrain.utils.architectures"
REGISTRY_FUNCTIONS = ("find_all_architectures", "get_architecture_path")
# functions in these modules, and what in the package wraps them
WRAPPED = {
    "metatrain.cli.train": {
        "validate_base_options": "integration.begin_run",
        "get_dataset": "integration.read_with_care",
        "train_model": "integration.start_from_own_checkpoints",
    },
    "metatrain.utils.distributed.logging": {
        "is_main_process": "integration.write_from_one_process"
    },
    "metatrain.cli.eval": {
        "eval_model": "integration_eval.evaluate_with_care",
        "_eval_targets": "integration_eval.tell_inputs_from_labels",
    },
    "metatrain.llpr.model": {
        "LLPRUncertaintyModel.set_wrapped_model": "integration.offer_calibrated_uncertainties",
        "LLPRUncertaintyModel._get_dataloader": "integration.calibrate_with_charges",
    },
    "metatrain.llpr.trainer": {"Trainer.train": "integration.train_ensemble_with_charges"},
}


class LoremFinder:
    """Meta path finder of ``metatrain.lorem``, and of the modules of metatrain to act on."""

    # modules that the other finders are being asked for
    asked = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Find a module; called for every import that is not yet in ``sys.modules``.

        :param name: full name of the module
        :param path: ``__path__`` of the parent package
        :param target: module about to be reloaded
        :return: the spec, or ``None`` to leave the import to the other finders
        """
        # another package's finder of this kind asks us in turn
        if not name.startswith("metatrain") or name in cls.asked:
            return None
        if name == ALIAS or name.startswith(ALIAS + "."):
            return _alias_spec(name)
        if name == "metatrain":
            action = _warn_of_obstacle
        elif name == REGISTRY:
            action = _list_lorem
        elif name in WRAPPED:
            action = _wrap
        else:
            return None
        spec = _spec_from_others(name, path)
        # no origin: a folder of data that happens to be called metatrain
        if spec is not None and spec.origin is not None:
            spec.loader = _ThenLoader(spec.loader, action)
        return spec


class _ThenLoader:
    """Load a module as its own loader does, then act on it."""

    def __init__(self, loader, action):
        self.loader = loader
        self.action = action

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        # give the module its own loader back: tracebacks and inspect read the source with it
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.action(module)


class _AliasLoader:
    """Load ``metatrain.lorem`` or a submodule: import its namesake in ``metatrain_lorem``."""

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        import importlib

        if _obstacle() is None:
            importlib.import_module(REGISTRY)  # whose functions can be looked at only then
        obstacle = _obstacle()
        if obstacle:
            # no ImportError: metatrain would hide it behind "reinstall metatrain"
            raise RuntimeError(obstacle)
        # importlib hands out what it finds in sys.modules after this call
        name = module.__spec__.name
        try:
            sys.modules[name] = original = importlib.import_module(_name_in_package(name))
            # the package imports its model when asked for it; here is where a misfit is told
            getattr(original, "__model__", None)
        except ImportError as error:
            if error.name is None or error.name.split(".")[0] != "metatrain":
                raise
            raise RuntimeError(_misfit(f"lacks what the model imports ({error})")) from error


def _name_in_package(name):
    return PACKAGE + name[len(ALIAS) :]


def _alias_spec(name):
    """Spec of ``metatrain.lorem[.submodule]``; None where the package has no such module."""
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec

    original = find_spec(_name_in_package(name))
    if original is None:
        return None
    spec = ModuleSpec(name, _AliasLoader(), origin=original.origin)
    spec.submodule_search_locations = original.submodule_search_locations
    return spec


def _spec_from_others(name, path):
    """Spec of a module as the finders after ours know it."""
    LoremFinder.asked.add(name)
    try:
        for finder in sys.meta_path[sys.meta_path.index(LoremFinder) + 1 :]:
            spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
            if spec is not None:
                return spec
    finally:
        LoremFinder.asked.discard(name)
    return None


def _obstacle():
    """Why ``lorem`` cannot be registered with the metatrain just imported.

    :return: a message that names the versions, or None where nothing is in the way
    """
    metatrain = sys.modules["metatrain"]
    own = _spec_from_others(ALIAS, metatrain.__path__)
    utils = [f"{folder}/utils" for folder in metatrain.__path__]
    registry = sys.modules.get(REGISTRY)
    # an origin: a folder left behind by another version (no __init__.py) is no architecture
    if own is not None and own.origin is not None:
        reason = f"brings an architecture 'lorem' of its own ({own.origin})"
    elif registry is None and _spec_from_others(REGISTRY, utils) is None:
        reason = f"has no module {REGISTRY}"
    elif registry is not None and not all(hasattr(registry, f) for f in REGISTRY_FUNCTIONS):
        reason = f"has no {' or no '.join(REGISTRY_FUNCTIONS)} in {REGISTRY}"
    else:
        return None
    return _misfit(reason)


def _misfit(reason):
    """Message that names the versions and the way out.

    :param reason: what is wrong with the installed metatrain
    """
    from importlib.metadata import requires, version

    installed = getattr(sys.modules["metatrain"], "__version__", "(unknown version)")
    needed = next(r for r in requires("metatrain-lorem") if r.startswith("metatrain<"))
    return (
        f"metatrain-lorem {version('metatrain-lorem')} cannot register its architecture 'lorem': "
        f"the installed metatrain {installed} {reason}. Install a version that it was tested with "
        f"(`pip install '{needed}'`), a newer metatrain-lorem, or uninstall metatrain-lorem."
    )


def _warn_of_obstacle(metatrain):
    """Say on import of metatrain that ``mtt`` will not know ``lorem``.

    :param metatrain: the module, just executed
    """
    if not hasattr(metatrain, "__path__"):
        return  # a script of the user's called metatrain.py
    obstacle = _obstacle()
    if obstacle:
        import warnings

        # stacklevel 1: one place, hence one warning, from wherever this is called
        warnings.warn(obstacle, stacklevel=1)


def _list_lorem(registry):
    """Let the functions of ``metatrain.utils.architectures`` know ``lorem``.

    :param registry: the module, just executed; others bind its functions by name after this
    """
    obstacle = _obstacle()
    if obstacle:
        _warn_of_obstacle(sys.modules["metatrain"])
        return

    from functools import wraps

    find_all, get_path = (getattr(registry, name) for name in REGISTRY_FUNCTIONS)

    @wraps(find_all)
    def find_all_architectures():
        return [*find_all(), "lorem"]

    @wraps(get_path)
    def get_architecture_path(name):
        if name != "lorem":
            return get_path(name)
        from importlib.util import find_spec
        from pathlib import Path

        return Path(find_spec(PACKAGE).origin).parent

    registry.find_all_architectures = find_all_architectures
    registry.get_architecture_path = get_architecture_path


def _wrap(module):
    """Wrap functions of metatrain by those of the package.

    :param module: the module of the functions, just executed
    """
    from functools import wraps
    from importlib import import_module

    for name, wrapper in WRAPPED[module.__name__].items():
        owner = module
        *path, name = name.split(".")
        for part in path:
            owner = getattr(owner, part, None)
        if hasattr(owner, name):
            original = getattr(owner, name)
            in_module, wrapper = wrapper.split(".")
            wrap = getattr(import_module(f"{PACKAGE}.{in_module}"), wrapper)
            setattr(owner, name, wraps(original)(wrap(original)))


# reloaded, this module takes the place of its former self
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__module__", None) != __name__]
sys.meta_path.insert(0, LoremFinder)
