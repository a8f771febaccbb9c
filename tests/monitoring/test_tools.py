"""The fetching of programs that tests run, with scripts in place of apt-get and dpkg."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tools

PROGRAMS = ("promtool", "prometheus", "chromium")


class Machine:
    """A PATH of its own and an empty ``.tools``. calls: what apt-get and dpkg were called with, a line each."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self.tools, self.log = root / "bin", root / "tools", root / "calls"
        self.bin.mkdir()
        self.log.touch()
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.delenv("GPUDRIFT_WITHOUT", raising=False)
        monkeypatch.setattr(tools, "TOOLS", self.tools)
        self.user(0)

    def user(self, number: int) -> None:
        self.monkeypatch.setattr("os.geteuid", lambda: number)

    def has(self, *names: str) -> None:
        for name in names:
            self.script(name, "exit 0")

    def script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n', encoding="utf-8")
        path.chmod(0o755)

    def packages(self, *, lists: bool = True) -> None:
        """apt-get that knows prometheus and chromium (lists: without an update first), and dpkg that unpacks."""
        known, chromium = self.bin.parent / "lists", self.bin / "chromium"
        if lists:
            known.touch()
        self.script(
            "apt-get",
            f'if [ "$1" = update ]; then : > {known}; exit 0; fi\n'
            f'[ -e {known} ] || {{ echo "E: Unable to locate package" >&2; exit 100; }}\n'
            f'case "$1" in download) : > prometheus_2_amd64.deb;; '
            f'install) printf "#!/bin/sh\\n" > {chromium}; /bin/chmod 755 {chromium};; esac',
        )
        self.script(
            "dpkg",
            '/bin/mkdir -p "$3/usr/bin" && cd "$3/usr/bin" && : > promtool && : > prometheus && /bin/chmod 755 *',
        )

    @property
    def calls(self) -> list[str]:
        return [" ".join(line.split()[:2]) for line in self.log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    """What this process, and what it starts, would read."""
    own = os.dup(0)
    try:
        os.dup2(descriptor, 0)
        yield
    finally:
        os.dup2(own, 0)
        os.close(own)


def test_what_is_on_path_is_not_fetched(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.has(*PROGRAMS)
    machine.packages()
    assert tools.main() == 0
    assert [tools.program(name) for name in PROGRAMS] == [machine.bin / name for name in PROGRAMS]
    assert machine.calls == []
    assert not machine.tools.exists()
    assert capsys.readouterr() == ("", "")


def test_what_is_missing_is_fetched_once_and_quietly(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.packages()
    assert tools.main() == 0
    assert machine.calls == ["apt-get download", "dpkg -x", "apt-get install"]
    assert tools.main() == 0
    assert len(machine.calls) == 3
    assert tools.program("promtool") == machine.tools / "usr" / "bin" / "promtool"
    assert tools.program("prometheus") == machine.tools / "usr" / "bin" / "prometheus"
    assert tools.program("chromium") == machine.bin / "chromium"
    assert [path.name for path in machine.tools.iterdir() if path.is_dir()] == ["usr"]
    assert capsys.readouterr() == ("", "")


def test_nothing_asks_and_only_the_package_itself_is_installed(machine: Machine, tmp_path: Path) -> None:
    machine.packages()
    machine.has("promtool", "prometheus")
    machine.monkeypatch.setenv("DEBIAN_FRONTEND", "dialog")
    body = (machine.bin / "apt-get").read_text(encoding="utf-8").partition("\n")[2].partition("\n")[2]
    machine.script("apt-get", f'echo "$DEBIAN_FRONTEND $(/bin/cat)" > {machine.log}.said\n{body}')
    (tmp_path / "typed").write_text("y", encoding="utf-8")
    with (tmp_path / "typed").open() as typed, standard_input(typed.fileno()):
        assert tools.main() == 0
    assert Path(f"{machine.log}.said").read_text(encoding="utf-8") == "noninteractive \n"  # and nothing to read
    assert " -y --no-install-recommends chromium fonts-dejavu-core" in machine.log.read_text(encoding="utf-8")


def test_lists_are_updated_where_they_lack_the_package(machine: Machine) -> None:
    machine.packages(lists=False)
    assert tools.main() == 0
    assert machine.calls == [
        *("apt-get download", "apt-get update", "apt-get download", "dpkg -x"),
        "apt-get install",
    ]


def test_without_root_prometheus_is_unpacked_and_chromium_told_missing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.packages()
    machine.user(1000)
    assert tools.main() == 0
    assert machine.calls == ["apt-get download", "dpkg -x"]
    assert capsys.readouterr().out == (
        "chromium is missing and cannot be fetched: only root can install it; its tests will fail\n"
    )


def test_without_root_no_list_is_updated(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.packages(lists=False)
    machine.user(1000)
    assert tools.main() == 0
    assert machine.calls == ["apt-get download"]
    assert (
        "promtool is missing and cannot be fetched: apt-get download ended with 100: E: Unable to locate package"
        in (capsys.readouterr().out)
    )


def test_without_apt_each_missing_program_is_a_line(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.has("promtool")
    assert tools.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name} is missing and cannot be fetched: there is no apt-get here; its tests will fail"
        for name in ("prometheus", "chromium")
    ]


@pytest.mark.parametrize(
    ("script", "body", "told"),
    [
        ("apt-get", "echo 'W: odd' >&2; echo 'E: no network' >&2; exit 100", "ended with 100: E: no network"),
        ("apt-get", "exit 7", "ended with 7: no message"),
        ("apt-get", "exit 0", "left no package"),
        ("dpkg", "exit 2", "dpkg -x ended with 2"),
        ("dpkg", "exit 0", "the package came without it"),
    ],
)
def test_a_failure_is_told_and_leaves_nothing_half_done(
    machine: Machine, capsys: pytest.CaptureFixture[str], script: str, body: str, told: str
) -> None:
    machine.has("chromium")
    machine.packages()
    machine.script(script, body)
    assert tools.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["promtool", "prometheus"]
    assert all(told in line for line in lines)
    assert [path.name for path in machine.tools.iterdir()] == [".lock"]


def test_a_call_that_hangs_is_ended_with_its_children(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.has("chromium")
    machine.monkeypatch.setattr(tools, "LIMIT", 0.1)
    machine.packages()
    machine.script("apt-get", "/bin/sleep 1000")  # a child that holds standard error open
    assert tools.main() == 0
    assert machine.calls == ["apt-get download"]
    assert "did not end within 0.1 s" in capsys.readouterr().out


def test_a_checkout_that_cannot_be_written_is_told(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.packages()
    machine.tools.write_text("a file in its place", encoding="utf-8")
    assert tools.main() == 0
    assert "promtool is missing and cannot be fetched: " in capsys.readouterr().out


def test_what_is_left_out_is_neither_fetched_nor_missed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.packages()
    machine.monkeypatch.setenv("GPUDRIFT_WITHOUT", " chromium, prometheus")
    assert tools.main() == 0
    assert machine.calls == []
    assert capsys.readouterr() == ("", "")
    with pytest.raises(pytest.skip.Exception, match="left out: promtool"):
        tools.program("promtool")
    machine.monkeypatch.setenv("GPUDRIFT_WITHOUT", "prometheus")
    with pytest.raises(pytest.fail.Exception, match="chromium is missing"):
        tools.program("chromium")


def test_a_missing_program_fails_its_test_by_name(machine: Machine) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"promtool is missing: .*GPUDRIFT_WITHOUT=prometheus"):
        tools.program("promtool")
    assert machine.calls == []


def test_an_unknown_group_is_an_error(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.packages()
    machine.monkeypatch.setenv("GPUDRIFT_WITHOUT", "grafana")
    assert tools.main() == 2
    assert "none of its groups: grafana (there are prometheus, chromium)" in capsys.readouterr().err
    assert machine.calls == []
    with pytest.raises(pytest.fail.Exception, match="grafana"):
        tools.program("promtool")
