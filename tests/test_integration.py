"""What metatrain does in runs of this architecture, and still does in those of others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from metatrain.cli import eval as evaluation
from metatrain.utils.io import load_model

from metatrain_lorem import integration, integration_eval

SOURCE = Path(__file__).resolve().parents[1] / "src"

# what `mtt train` asks before it reads the options, and the seed that it draws then
SCRIPT = """
import sys
from metatrain.cli import train
from metatrain.cli.train import is_main_process, BASE_OPTIONS, OmegaConf
first = is_main_process()
options = OmegaConf.load(sys.argv[2])
train.validate_base_options(OmegaConf.to_container(options))
options = OmegaConf.merge(BASE_OPTIONS, options)
assert is_main_process() == first
print(first, options["seed"])
"""
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a run", "MASTER_PORT": "1"}


def ranks_and_seeds(folder, architecture, *environments):
    """Which of the processes of a run take themselves for the main one, and their seeds."""
    data = "training_set: data.xyz\nvalidation_set: 0.1"
    (folder / "options.yaml").write_text(f"architecture: {{name: {architecture}}}\n{data}")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "train", "options.yaml"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    answers = [process.communicate()[0].split() for process in processes]
    return [main == "True" for main, _ in answers], [int(seed) for _, seed in answers]


@pytest.mark.parametrize("architecture", ["lorem", "pet"])
def test_processes_of_torchrun(tmp_path, architecture):
    """Other architectures are left to metatrain, which knows nothing of ranks here."""
    ours = architecture == "lorem"
    environments = [{**TORCHRUN, "RANK": rank} for rank in "01"]
    main, seeds = ranks_and_seeds(tmp_path, architecture, *environments)
    assert main == [True, not ours]
    assert (seeds[0] == seeds[1]) == ours


@pytest.mark.parametrize("architecture", ["lorem", "pet"])
def test_processes_of_slurm(tmp_path, architecture):
    """metatrain knows the ranks, but draws a seed in each process.

    It refuses such jobs for architectures that it takes for unable to train in several processes.
    """
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    environments = [{**job, "SLURM_PROCID": rank} for rank in "01"]
    main, seeds = ranks_and_seeds(tmp_path, architecture, *environments)
    assert main == [True, False]
    assert (seeds[0] == seeds[1]) == (architecture == "lorem")


def test_one_process_keeps_its_seed(tmp_path):
    _, seeds = ranks_and_seeds(tmp_path, "lorem", {}, {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"})
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    "words, expected",
    [
        ("train lorem.yaml", "lorem"),
        ("--debug train -o lorem.yaml pet.yaml --restart auto", "pet"),
        ("train pet.yaml -r architecture.name=lorem -r seed=1", "lorem"),
        ("train no-such-file.yaml", None),
        ("train lorem.yaml another word", "lorem"),
        ("train empty.yaml", None),
        ("train", None),
        ("train --no-such-option", None),
        ("eval model.pt lorem.yaml", None),
        ("", None),
    ],
)
def test_architecture_on_the_command_line(tmp_path, monkeypatch, capfd, words, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("lorem", "pet"):
        Path(f"{name}.yaml").write_text(f"architecture: {{name: {name}}}")
    Path("empty.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["mtt", *words.split()])
    assert integration._architecture_on_command_line.__wrapped__() == expected
    assert capfd.readouterr() == ("", "")


def test_a_run_of_another_architecture_in_the_same_process(monkeypatch):
    """The options that metatrain trains with count more than the command line."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(integration, "_architecture", None)
    monkeypatch.setattr(integration, "_architecture_on_command_line", lambda: "lorem")
    # otherwise changed for other tests
    monkeypatch.setattr("metatrain.utils.omegaconf.RANDOM_SEED", 5)
    is_main_process = integration.write_from_one_process(lambda: "theirs")
    validate = integration.begin_run(lambda options: {**options, "validated": True})
    read = integration.read_with_care(lambda options: "read by them")
    assert is_main_process() is False
    for name, is_main in [("pet", "theirs"), ("lorem", False), ("pet", "theirs")]:
        options = {"architecture": {"name": name}, "training_set": "no-such-file.xyz"}
        assert validate(options) == {**options, "validated": True}
        assert is_main_process() == is_main
    assert read("section") == "read by them"


class Other(torch.nn.Module):
    """Has none of the methods that an evaluation of ours would call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("scripted", [False, True])
def test_evaluation_of_other_models_is_left_alone(scripted):
    def original(model, *arguments, **keywords):
        return evaluation.CollateFn, arguments, keywords

    model = torch.nn.Sequential(Other())
    model = torch.jit.script(model) if scripted else model
    result = integration_eval.tell_inputs_from_labels(original)(
        model, "data", {"energy": 1}, warm_up=False
    )
    assert result == (evaluation.CollateFn, ("data", {"energy": 1}), {"warm_up": False})

    def original_of_files(model, options, **keywords):
        return evaluation.expand_dataset_config, evaluation.get_dataset, options, keywords

    functions = evaluation.expand_dataset_config, evaluation.get_dataset
    result = integration_eval.evaluate_with_care(original_of_files)(model, "options", output="o")
    assert result == (*functions, "options", {"output": "o"})


@pytest.mark.parametrize("kind", ["exported", "saved", "in another model"])
def test_total_charges_are_no_labels_of_our_models(lorem, tmp_path, monkeypatch, kind):
    model = lorem.new_model(conditional=True, charge_equilibration={"enable": True}).export()
    if kind == "saved":
        model.save(tmp_path / "model.pt")
        model = load_model(tmp_path / "model.pt")
    elif kind == "in another model":
        inner = model
        model = torch.nn.Sequential(inner)
        model.requested_inputs, model.capabilities = inner.requested_inputs, inner.capabilities
    monkeypatch.setattr(evaluation, "CollateFn", lambda keys, callables: keys)
    collate = evaluation.CollateFn

    def original(model, dataset, options):
        return evaluation.CollateFn(["energy", "charge", "feature"], callables=[])

    evaluate = integration_eval.tell_inputs_from_labels(original)
    assert evaluate(model, None, {"energy": None, "charge": None}) == ["energy"]
    assert evaluation.CollateFn is collate

    def failing(model, dataset, options):
        raise ValueError

    with pytest.raises(ValueError):
        integration_eval.tell_inputs_from_labels(failing)(model, None, {})
    assert evaluation.CollateFn is collate
