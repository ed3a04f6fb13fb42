"""The README and the continuous integration script say the same, and what the README says is so."""

import pathlib
import re
import tomllib

import emppl

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python3 -m venv")]


def test_the_example_prints_what_the_readme_shows(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(emppl.EM.__init__.__kwdefaults__, "verify", True)
    (example,) = blocks("python")
    (shown,) = blocks("text")
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert words(printed) == words(shown)


def words(text):
    """Words in order; numbers to four digits, so that the last digit of another processor does not matter."""
    number = r"-?\d+\.\d+(?:e-?\d+)?"
    # The width of a rule or a column depends on the numbers in it.
    text = re.sub(r"[-=]{3,}", " ", text)
    return [f"{float(word):.4g}" if re.fullmatch(number, word) else word for word in text.split()]


def test_ci_runs_the_command_of_the_readme():
    (test_command,) = [line for line in commands() if line.endswith("-m pytest")]
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_commands_install_extras_that_exist():
    for line in commands():
        for extra in re.search(r"'\.\[(.*?)\]'", line).group(1).split(","):
            assert extra in PROJECT["optional-dependencies"]


def test_core_dependencies_are_three():
    assert [re.match(r"\w+", name).group() for name in PROJECT["dependencies"]] == ["jax", "numpyro", "optax"]


def test_constraints_are_exact_and_name_no_host():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r'[\w-]+==[\w.]+( ; python_version (<|>=) "3\.12")?', line), line
