"""Files that cannot be checked, and functions that misbehave: one clear sentence each, never a crash."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import zipmix
from zipmix.checker.command import register

RIGHT = (Path(__file__).parent / "solutions" / "right.py").read_text()
ARGUMENTS = "data, belief_state, params_state, hyperparams"

app = typer.Typer()
register(app)


def finding(body: str, tmp_path: Path, *, time_limit: float = 10.0, memory_limit: float = 2.0) -> str:
    """What is said of an m_step with a body, and where."""
    file = tmp_path / "solution.py"
    file.write_text(
        f"import torch\n\ndef m_step({ARGUMENTS}):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    )
    report = zipmix.check(file, quick=True, time_limit=time_limit, memory_limit=memory_limit)
    assert not report.passed
    assert len(report["m_step"].findings) == 1
    found = report["m_step"].findings[0]
    assert "\n" not in found.lines[0]
    return f"{found.where}: {found.lines[0]}"


SHAPES = 'K, D = params_state["omega_KD"].shape\n'


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("x = 1\nreturn 1 / 0", "solution.py, line 5: raises ZeroDivisionError: division by zero"),
        ("return data['X']", "solution.py, line 4: raises KeyError: 'X'"),
        ("return None", "returns None where a dictionary with pi_K, omega_KD, lambd_KD is required"),
        ("return {'pi_K': 1}", "returns a dictionary without omega_KD; it has pi_K"),
        (
            "return dict(params_state, pi_K=params_state['omega_KD'])",
            "returns pi_K of shape (1, 1) where (1,) is required",
        ),
        ("return dict(params_state, pi_K='many')", "returns pi_K as str, not as a tensor"),
        ("return object()", "returns a value of type object, which is neither a tensor nor a plain container"),
        ("return {name: value + 0j for name, value in params_state.items()}", "returns complex numbers where real"),
        ("yield params_state", "returns a value of type generator, which is neither"),
        (
            "import os\nfor n in range(3, 60):\n    try: os.write(n, b'junk ' * 9)\n    except OSError: pass",
            "returns what cannot be read",
        ),
        ("import os\nos.closerange(3, 60)\nreturn params_state", "ends the whole process (exit status 1)"),
        ("raise SystemExit(0)", "raises SystemExit: 0"),
        ("raise KeyboardInterrupt", "raises KeyboardInterrupt"),
        ("return input('go on?')", "raises EOFError"),
        ("import os\nos._exit(3)", "ends the whole process (exit status 3)"),
        ("import os\nos.kill(os.getpid(), 11)", "ends the whole process (exit status -11)"),
        ("return m_step(data, belief_state, params_state, hyperparams)", "raises RecursionError"),
        ("raise ValueError('\\x1b[31mred\\nand two lines')", "raises ValueError: [31mred and two lines"),
        ("class E(Exception):\n    def __str__(self): raise TypeError\nraise E", "raises E"),
    ],
)
def test_a_function_that_misbehaves(
    body: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sentence in finding(body, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_endless_loop_is_ended(tmp_path: Path) -> None:
    began = time.perf_counter()
    assert "solution.py, line 3: does not come to an end in 0.5 seconds" in finding(
        "while True: pass", tmp_path, time_limit=0.5
    )
    assert time.perf_counter() - began < 20


def test_an_answer_that_is_begun_and_not_finished_is_ended(tmp_path: Path) -> None:
    # A message's length, then silence, into whatever is open.
    body = "import os, time\nfor n in range(3, 60):\n    try: os.write(n, bytes([0, 0, 16, 0, 1]))\n"
    body += "    except OSError: pass\ntime.sleep(60)"
    began = time.perf_counter()
    assert "returns what cannot be read" in finding(body, tmp_path, time_limit=1.0)
    assert time.perf_counter() - began < 20


def test_what_a_function_leaves_running_is_ended_too(tmp_path: Path) -> None:
    pid_file = repr(str(tmp_path / "pid"))
    body = f"import subprocess\np = subprocess.Popen(['sleep', '60'])\nopen({pid_file}, 'w').write(str(p.pid))\n1 / 0"
    finding(body, tmp_path)
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.1)
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_memory_is_limited(tmp_path: Path) -> None:
    assert "memory" in finding("return torch.ones(10**9).sum()", tmp_path, memory_limit=0.5)


def test_nan_is_a_finding(tmp_path: Path) -> None:
    text = finding("return {n: v * float('nan') if n == 'pi_K' else v for n, v in truth().items()}\n", tmp_path)
    assert "raises NameError" in text
    report = zipmix.check(m_step=lambda **s: {n: v * float("nan") for n, v in s["params_state"].items()}, quick=True)
    assert [f.output for f in report["m_step"].findings] == ["pi_K", "omega_KD", "lambd_KD"]
    assert "is NaN" in report["m_step"].findings[0].lines[0]
    revealed = zipmix.check(
        m_step=lambda **s: {n: v / 0 for n, v in s["params_state"].items()}, quick=True, reveal=True
    )
    content = json.loads(json.dumps(revealed.as_dict(), allow_nan=False))
    assert content["items"]["m_step"]["findings"][0]["got"] == "inf"
    assert "is infinite where it must not be" in revealed["m_step"].findings[0].lines[0]


def test_print_outs_are_told_and_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "solution.py"
    noise = (
        "import os\nprint('loading')\ndef noise():\n    print('here')\n    os.system('echo x')\n    os.write(2, b'x')\n"
    )
    file.write_text(RIGHT.replace("    Ezeta = belief_state", "    noise()\n    Ezeta = belief_state") + noise)
    report = zipmix.check(file, quick=True)
    assert report.passed, str(report)
    assert report["compute_affinity_matrix"].notes == ("prints 'here'",)
    assert report.notes == ("prints 'loading' when it is run",)
    assert capfd.readouterr() == ("", "")


def refusal(name: str, text: str, tmp_path: Path) -> str:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(zipmix.InputError) as error:
        zipmix.check(file, time_limit=1.0)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("s.py", "def m_step(a:\n", "s.py, line 1: this is not Python"),
        ("s.py", "x = 1\n\nif x\n    y\n", "s.py, line 3: this is not Python (expected ':')"),
        ("s.py", "", "s.py has no function that is looked for; it defines none"),
        ("s.py", "\ndef M_step(x): pass\n", "it defines M_step (s.py, line 2)"),
        ("s.py", "\ndef M_step(x): pass\n", "Is M_step meant as m_step?"),
        ("s.py", "x = 1\nraise RuntimeError('boom')\n", "s.py, line 2: raises RuntimeError: boom"),
        ("s.py", "while True: pass\n", "s.py: does not come to an end in 1 seconds when it is run"),
        ("s.ipynb", "{", "is not a notebook of format 4"),
        ("s.ipynb", '{"cells": [{"cell_type": "code", "source": ["def f(:\\n"]}]}', "s.ipynb, code cell 1, line 1"),
        ("s.txt", "", "neither a Python file (.py) nor a notebook (.ipynb)"),
    ],
)
def test_a_file_in_which_nothing_can_be_checked(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in refusal(name, text, tmp_path)


def test_other_argument_names_are_a_finding(tmp_path: Path) -> None:
    assert "expected" not in (
        text := str(zipmix.check(m_step=lambda X, theta: theta, quick=True)["m_step"].findings[0].lines)
    )
    assert "has the arguments (X, theta) where (data, belief_state, params_state, hyperparams) are required" in text


def test_a_file_that_fails_after_its_functions_is_wrong_and_they_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "solution.py"
    file.write_text(RIGHT + "\nraise RuntimeError('boom')\n\ndef late(): pass\n")
    report = zipmix.check(file, quick=True)
    assert not report.passed
    assert all(item.passed for item in report.items.values())
    n_lines = RIGHT.count("\n")
    assert report.failures[0].where == f"solution.py, line {n_lines + 2}"


def test_a_file_that_never_ends_is_wrong_and_its_functions_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "solution.py"
    file.write_text(RIGHT + "\nwhile True: pass\n")
    report = zipmix.check(file, quick=True, time_limit=3.0)
    assert not report.passed
    assert len(report.items) == 20
    assert all(item.passed for item in report.items.values())


def test_keywords_and_kinds_of_solutions_are_checked() -> None:
    with pytest.raises(TypeError, match="Did you mean 'm_step'"):
        zipmix.check(mstep=lambda: 0)
    with pytest.raises(zipmix.InputError, match="m_step must be a function, got int"):
        zipmix.check(m_step=3)
    with pytest.raises(zipmix.InputError, match="nothing to check"):
        zipmix.check()
    with pytest.raises(zipmix.InputError, match="got int"):
        zipmix.check(3)
    with pytest.raises(zipmix.InputError, match="there is no file"):
        zipmix.check("no_such_file.py")
    with pytest.raises(KeyError, match="has no e_step that was checked; checked were m_step"):
        zipmix.check({"m_step": lambda: 0}, quick=True)["e_step"]


def notebook(*cells: str) -> str:
    first = [{"cell_type": "markdown", "source": ["# Solution"]}]
    code = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    return json.dumps({"cells": first + code, "nbformat": 4, "nbformat_minor": 5, "metadata": {}})


def test_a_notebook_is_read_cell_by_cell(tmp_path: Path) -> None:
    file = tmp_path / "solution.ipynb"
    wrong = RIGHT.replace("(s + e0 - 1)", "(s + e0)")
    file.write_text(
        notebook(
            "%matplotlib inline\nimport torch\n!pip list\ndata = torch.load('data.pkl')\nX = data['X_ND']",
            wrong,
            "%%bash\nls",
            "this is no Python",
            "while True:\n    pass",
            "EPS = 1e-10\nraise RuntimeError",
        )
    )
    report = zipmix.check(file, quick=True)
    assert [name for name, item in report.items.items() if not item.passed] == ["m_step"]
    found = report["m_step"].findings[0]
    line = wrong[: wrong.index("def m_step")].count("\n") + 1
    assert found.where == f"solution.ipynb, code cell 2, line {line}"
    assert found.mistake == "gamma_mean_for_mode"
    assert [failure.where for failure in report.failures] == ["solution.ipynb, code cell 4, line 1"]


def test_only_reveal_shows_numbers_and_the_problem_is_the_smallest(tmp_path: Path) -> None:
    file = tmp_path / "solution.py"
    file.write_text(RIGHT.replace("(s + e0 - 1)", "(s + e0)"))
    hidden, shown = (zipmix.check(file, quick=True, reveal=reveal)["m_step"].findings[0] for reveal in (False, True))
    assert hidden.got is None
    assert hidden.expected is None
    assert not any("expected" in line for line in hidden.lines)
    assert hidden.sizes == (1, 1, 1)
    assert hidden.index == (0, 0)
    # The right number by hand, from the inputs that the report holds.
    inputs = shown.inputs
    X, Eb = inputs["data"]["X_ND"][0][0], inputs["belief_state"]["Eb_NKD"][0][0][0]
    e, f = (inputs["hyperparams"][name] for name in ("e0", "f0"))
    assert shown.expected == pytest.approx((e - 1 + X) / (f + Eb), rel=1e-12)
    assert shown.got == pytest.approx((e + X) / (f + Eb), rel=1e-12)
    assert f"got {shown.got:.6g}, expected {shown.expected:.6g}" in shown.lines


def leaves(value: object) -> list[object]:
    """Everything in nested containers that is no container."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]


def test_right_numbers_are_nowhere_without_reveal(tmp_path: Path) -> None:
    file = tmp_path / "solution.py"
    wrong = RIGHT.replace("(s + e0 - 1)", "(s + e0)").replace("(m + a0 - 1)", "m")
    file.write_text(wrong.replace("log_pi + log_omega + log_lambd", "log_pi + log_lambd"))
    hidden, shown = (zipmix.check(file, quick=True, reveal=reveal) for reveal in (False, True))
    command = ["check", str(file), "--quick", "--json"]
    in_json, with_reveal = (
        json.loads(CliRunner().invoke(app, command + option).stdout) for option in ([], ["--reveal"])
    )
    found = [finding for item in shown.items.values() for finding in item.findings]
    assert {finding.output for finding in found} == {"omega_KD", "lambd_KD", "value"}
    for finding in found:
        for number in (finding.got, finding.expected):
            assert number is not None
            for text in (str(hidden), hidden._repr_html_()):
                assert f"{number:.6g}" not in text
            for text in (str(shown), shown._repr_html_()):
                assert f"{number:.6g}" in text
            for leaf in leaves(in_json):
                assert not isinstance(leaf, float) or leaf != pytest.approx(number, rel=1e-6)
            assert number in leaves(with_reveal)
    # One's own answer and a difference of all digits would give the right one.
    for item in in_json["items"].values():
        for difference in [item["difference"], *(finding["difference"] for finding in item["findings"])]:
            assert difference == float(f"{difference:.2g}")


def test_the_report_as_table_html_and_json(tmp_path: Path) -> None:
    file = tmp_path / "<b>solution.py"
    file.write_text(
        "def m_step(data, belief_state, params_state, hyperparams):\n    raise ValueError('<script>[red]')\n"
    )
    report = zipmix.check(file, quick=True)
    assert "raises ValueError: <script>[red]" in str(report)
    html = report._repr_html_()
    assert "<script>" not in html
    assert "<b>solution" not in html
    assert "&lt;script&gt;" in html
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["passed"] is False
    assert content["items"]["m_step"]["findings"][0]["kind"] == "error"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    state, folder, threads = torch.get_rng_state(), os.getcwd(), torch.get_num_threads()
    file = tmp_path / "solution.py"
    file.write_text(RIGHT + "\ntorch.set_default_dtype(torch.float64)\n")
    assert zipmix.check(file, quick=True).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert (os.getcwd(), torch.get_num_threads()) == (folder, threads)
    assert torch.get_default_dtype() == torch.float32


def test_the_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    right, wrong, empty = (tmp_path / name for name in ("right.py", "wrong.py", "empty.py"))
    right.write_text(RIGHT)
    wrong.write_text(RIGHT.replace("(s + e0 - 1)", "(s + e0)"))
    result = runner.invoke(app, ["check", str(right), "--quick"])
    assert (result.exit_code, "20 of 20 functions right" in result.output) == (0, True)
    result = runner.invoke(app, ["check", str(wrong), "--quick", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["items"]["m_step"]["findings"][0]["mistake"] == "gamma_mean_for_mode"
    result = runner.invoke(app, ["check", "--template", str(empty)])
    assert result.exit_code == 0
    result = runner.invoke(app, ["check", str(empty), "--quick"])
    assert (result.exit_code, "0 of 20 functions right" in result.output) == (2, True)
    for arguments in (["check"], ["check", str(tmp_path / "none.py")], ["check", "--template", str(empty)]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
