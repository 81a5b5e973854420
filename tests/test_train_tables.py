"""The paper's tables of accuracies: their runs, and what is printed."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
from small_runs import MODEL

from rdpnet_timm.cli import main
from rdpnet_timm.train import RECIPES, Run, read_data
from rdpnet_timm.train.tables import TABLES, format_table, run_table


@pytest.mark.parametrize(("number", "rows"), [(3, 6), (8, 4)])
def test_a_table_has_a_model_for_every_row_of_the_papers(number, rows):
    from rdpnet_timm.measure.published import PAPER

    assert list(TABLES[number]) == [row for row in PAPER[f"table{number}"].rows if row.startswith("RDPNet")] or (
        set(TABLES[number]) == set(PAPER[f"table{number}"].rows)
    )
    assert len(TABLES[number]) == rows
    networks = [(network.model, tuple(network.model_args.items())) for network in TABLES[number].values()]
    assert len(set(networks)) == rows and all(model in timm.list_models("rdpnet_*_cifar") for model, _ in networks)


def card_of(row, number=3, **others):
    """What a finished run of a row leaves on its card, as far as a table needs it."""
    training, test = read_data("digits")
    return {
        **TABLES[number][row]._asdict(),
        "recipe": asdict(RECIPES["digits"]),
        "amp": False,
        "seed": 0,
        "training_data": training.digest(),
        "test_data": test.digest(),
        **others,
    }


def write_card(folder, row, seed, **card):
    name = "".join(character if character.isalnum() or character in ".-" else "_" for character in row)
    path = folder / name / f"seed{seed}" / "weights.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seed": seed, **card}))
    return path


def test_a_table_gives_mean_and_spread_over_seeds_beside_the_papers_figure(tmp_path):
    for seed, accuracy in ((0, 90.0), (1, 91.0)):
        write_card(tmp_path, "RDPNet-0.25x", **card_of("RDPNet-0.25x", accuracy_before_rounding=accuracy, seed=seed))
    lines = format_table(3, tmp_path, "CIFAR-10 %").splitlines()
    assert lines[2] == "| RDPNet-0.25x | 89.7 | 90.50 | ±0.71 | 2 | +0.80 |"
    assert lines[3] == "| RDPNet-0.5x | 92.0 | not run |  | 0 |  |"


@pytest.mark.parametrize(
    "other",
    [
        dict(recipe=asdict(RECIPES["demo"])),
        dict(amp=True),
        dict(training_data="0" * 64),
        dict(test_data="0" * 64),
        dict(model="rdpnet_050_cifar"),
        dict(model_args={"shuffle_groups": 0}),
        dict(weights="rdpnet_025_cifar.c10"),
    ],
    ids=lambda other: next(iter(other)),
)
def test_runs_of_other_settings_or_data_make_no_table_and_are_not_taken_for_finished(tmp_path, other, monkeypatch):
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: pytest.fail("nothing is to be run")
    )
    row = "RDPNet-0.25x"
    write_card(tmp_path, row, **card_of(row, accuracy_before_rounding=90.0))
    odd = write_card(tmp_path, row, **card_of(row, accuracy_before_rounding=91.0, **{"seed": 1, **other}))
    name = "recipe.epochs" if "recipe" in other else next(iter(other))
    with pytest.raises(ValueError, match=f"'{odd}' is the card of another run, with {name} .* rather than"):
        format_table(3, tmp_path, "CIFAR-10 %")
    run = Run(MODEL, RECIPES["digits"])
    with pytest.raises(ValueError, match=f"'{odd}' is the card of another run, with {name} .* rather than"):
        run_table(3, tmp_path, [1], ["digits", "--recipe", "digits"], run, read_data("digits"))


def test_a_card_that_is_none_is_not_taken_for_a_finished_run(tmp_path):
    path = write_card(tmp_path, "RDPNet-0.25x", 0, accuracy_before_rounding=90.0)
    for text in ("{}", '{"model": "rdpnet_', "[]", json.dumps({**card_of("RDPNet-0.25x"), "seed": 0})):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"'{path}' is not the card of a finished run .* delete this file"):
            run_table(3, tmp_path, [0], ["digits"], Run(MODEL, RECIPES["digits"]), read_data("digits"))
        with pytest.raises(ValueError, match=f"'{path}' is not the card of a finished run .* delete this file"):
            format_table(3, tmp_path)


def test_a_printed_table_stands_beside_the_papers_figures_for_its_data(tmp_path, capsys):
    row = "RDPNet-0.25x"
    classes = [str(number) for number in range(100)]
    write_card(tmp_path, row, **card_of(row, accuracy_before_rounding=60.0, classes=classes))
    assert main(["table", "3", "-o", str(tmp_path), "--print"]) == 0
    assert "| CIFAR-100 % | paper |" in (printed := capsys.readouterr().out)
    assert "| RDPNet-0.25x | 68.4 | 60.00 |  | 1 | -8.40 |" in printed
    assert main(["table", "3", "-o", str(tmp_path), "--print", "--column", "CIFAR-10 %"]) == 1
    assert "data of 100 classes belong beside 'CIFAR-100 %', not beside 'CIFAR-10 %'" in capsys.readouterr().err


class Finished:
    """A process that has come to its end."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def test_a_signal_ends_a_tables_processes_and_begins_no_other(tmp_path, monkeypatch):
    """They are told to end, and waited for."""
    for error in (SystemExit(143), KeyboardInterrupt()):
        calls = []

        class Process(Finished):
            terminate, wait = (lambda self, name=name: calls.append(name) for name in ("terminate", "wait"))  # noqa: B023

        def sleep(seconds, error=error):
            raise error

        monkeypatch.setattr("rdpnet_timm.train.tables.subprocess.Popen", lambda command: Process(None))
        monkeypatch.setattr("rdpnet_timm.train.tables.time.sleep", sleep)
        with pytest.raises(type(error)):
            run_table(8, tmp_path, [0], ["digits"], Run(MODEL, RECIPES["digits"]), read_data("digits"))
        assert calls == ["terminate", "wait"]


def test_a_tables_runs_are_made_once_and_those_that_failed_are_named(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(command)
        if "pointwise_identity=True" in command:
            return Finished(1)
        row, seed = "no identity, shuffle (RDPNet)", int(command[command.index("--seed") + 1])
        if "shuffle_groups=0" in command:
            row = "no identity, no shuffle"
        card = write_card(tmp_path, row, **card_of(row, 8, seed=seed, accuracy_before_rounding=70.0))
        assert card.parent == Path(command[command.index("--output") + 1])
        return Finished(0)

    monkeypatch.setattr("rdpnet_timm.train.tables.subprocess.Popen", run)
    arguments = ["--output", str(tmp_path), "--column", "CIFAR-100 %", "--jobs", "2", "--seeds", "0", "1", "0"]
    assert main(["table", "8", *arguments, "--print"]) == 0 and not commands
    assert capsys.readouterr().out.count("not run") == 4
    with_data = ["table", "8", "digits", *arguments, "--recipe", "digits"]
    assert main(with_data) == 1
    printed = capsys.readouterr()
    assert "4 runs failed" in printed.err and "identity in PW, shuffle, seed 1: exit status 1" in printed.err
    assert "| no identity, shuffle (RDPNet) | 73.8 | 70.00 | ±0.00 | 2 | -3.80 |" in printed.out
    assert len(commands) == 8 and all(command[4:7] == ["digits", "--recipe", "digits"] for command in commands)
    assert main(with_data) == 1 and len(commands) == 12


def test_a_table_takes_its_data_behind_options_and_refuses_unknown_ones(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: commands.append(command) or Finished(1)
    )
    assert main(["table", "8", "--recipe", "demo", "digits", "-o", str(tmp_path)]) == 1
    assert len(commands) == 4 and "| CIFAR-100 % | paper |" in capsys.readouterr().out
    commands.clear()
    assert main(["table", "3", "digits", "--rows", "2", "-o", str(tmp_path / "two"), "--recipe", "demo"]) == 1
    assert [command[command.index("--model") + 1] for command in commands] == ["rdpnet_025_cifar", "rdpnet_050_cifar"]
    with pytest.raises(SystemExit):
        main(["table", "3", "--print", "-o", str(tmp_path), "--bogus", "3"])
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_the_ablations_can_be_those_of_another_width(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: commands.append(command) or Finished(1)
    )
    assert main(["table", "8", "digits", "-o", str(tmp_path), "--model", "rdpnet_025_cifar"]) == 1
    assert [command[command.index("--model") + 1] for command in commands] == ["rdpnet_025_cifar"] * 4
    assert len({tuple(command[command.index("--model-args") :]) for command in commands}) == 4


def test_a_table_of_another_width_stands_beside_the_papers_without_a_difference(tmp_path, capsys):
    row = "no identity, no shuffle"
    write_card(tmp_path, row, **card_of(row, 8, model="rdpnet_025_cifar", accuracy_before_rounding=60.0))
    arguments = ["table", "8", "-o", str(tmp_path), "--column", "CIFAR-100 %", "--print"]
    assert main([*arguments, "--model", "rdpnet_025_cifar"]) == 0
    printed = capsys.readouterr().out
    assert "| CIFAR-100 % | paper, rdpnet_100_cifar | ours |" in printed
    assert "| no identity, no shuffle | 71.3 | 60.00 |  | 1 |  |" in printed
    assert main(arguments) == 1
    assert "model rdpnet_025_cifar rather than rdpnet_100_cifar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no data in 'nowhere'"),
        ([], "name the data"),
        (["digits", "--epochs", "0"], "epochs must be above 0, got 0.0"),
        (["digits", "--epochs", "-1"], "epochs must be above 0, got -1.0"),
        (["digits", "--model", "rdpnet_050_cifar"], "leave out --model rdpnet_050_cifar"),
        (["digits", "--model-args", "shuffle_groups=0"], "leave out --model-args"),
        (["digits", "--recipe", "lazy"], "lazy"),
        (["digits", "--recipe", "short", "--epochs", "22"], "all 22 epochs would be on images shrunk to 24 pixels"),
        (["digits", "--column", "CIFAR-100"], "Table 3 has the accuracies CIFAR-10 %, CIFAR-100 %, got 'CIFAR-100'"),
        (["digits", "--weights", "rdpnet_025_cifar.c10"], "leave out --model-args and --weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_fail_in_every_run_of_a_table_fails_before_the_first(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: pytest.fail("nothing is to be run")
    )
    assert main(["table", "3", *arguments, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
