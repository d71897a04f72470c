"""What `make audit` asks of the requirements: is each pinned exactly, and is one of them known to be vulnerable?

    requirements/*.txt, the Makefile's torch ─► each `name==version` ─► pip-audit, `PROCESSES` at once ─► advisories
                                                  │ else: fails           │ nothing heard in          │ not in
                                                  ▼                       ▼ `SECONDS`: says so        ▼ audit.txt: fails

audit.txt lists advisories that are known and accepted, one a line: its id, the date, and why it does no harm here.
Where no advisory service is reached, or it knows none of the packages (a registry that mirrors files alone), that is
said, and is no failure: a machine without the network has to be able to check its code.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
SECONDS = 20.0
"""For all of what is asked over the network."""
PROCESSES = 4
_SOCKET_SECONDS = 5
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+")
_TORCH = re.compile(r"\btorch==[0-9.]+")
_ACCEPTED = re.compile(r"(?P<id>[A-Z]+-[A-Za-z0-9-]+) +(?P<date>\d{4}-\d\d-\d\d) +(?P<why>\S.*)")


class Unusable(Exception):
    """A file of ours says something that cannot be meant; the message says where."""


class Advisory(msgspec.Struct, frozen=True):
    """One known vulnerability, as pip-audit tells it."""

    id: str
    fix_versions: list[str] = []
    aliases: list[str] = []


class Dependency(msgspec.Struct, frozen=True):
    """One package; without a version where nothing is known of it."""

    name: str
    version: str | None = None
    vulns: list[Advisory] = []
    skip_reason: str | None = None


class Report(msgspec.Struct, frozen=True):
    """What pip-audit writes."""

    dependencies: list[Dependency] = []


@dataclass
class Outcome:
    """What was found out about all requirements."""

    known: int = 0
    """Packages that the service knew."""
    silent: list[str] = field(default_factory=list)
    """Why there is no answer about some."""
    found: list[tuple[Dependency, Advisory]] = field(default_factory=list)


def pins(folder: Path) -> list[str]:
    """Every requirement. Raises `Unusable` for one that is not pinned to one version."""
    found: list[str] = []
    for file in sorted(folder.glob("*.txt")):
        if file.name == "audit.txt":
            continue
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            asked = line.partition("#")[0].strip()
            if asked and not _PIN.fullmatch(asked):
                raise Unusable(f"{file}, line {number}: {asked!r} is not pinned: write name==version")
            found += [asked] if asked else []
    makefile = folder.parent / "Makefile"
    return sorted({*found, *(_TORCH.findall(makefile.read_text()) if makefile.is_file() else ())})


def accepted(file: Path) -> dict[str, str]:
    """(date and reason) by advisory. Raises `Unusable` for a line without either."""
    found = {}
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else (), start=1):
        if line.strip() and not line.startswith("#"):
            told = _ACCEPTED.fullmatch(line.strip())
            if told is None:
                raise Unusable(f"{file}, line {number}: write the advisory's id, a date (2026-01-31), and why")
            found[told["id"]] = f"{told['date']}: {told['why']}"
    return found


async def asked(requirements: Sequence[str], options: Sequence[str], seconds: float) -> Outcome:
    """pip-audit's answer about all of them, as far as it came in time."""
    outcome = Outcome()
    parts = [part for n in range(PROCESSES) if (part := requirements[n::PROCESSES])]
    reports = await asyncio.gather(*(_report(part, options, seconds) for part in parts))
    for part, report in zip(parts, reports, strict=True):
        if isinstance(report, str):
            outcome.silent.append(f"{len(part)} packages: {report}")
            continue
        for dependency in report.dependencies:
            outcome.known += dependency.skip_reason is None
            outcome.found += ((dependency, advisory) for advisory in dependency.vulns)
        if unknown := sum(d.skip_reason is not None for d in report.dependencies):
            outcome.silent.append(f"{unknown} packages: the advisory service does not know them")
    return outcome


async def _report(requirements: Sequence[str], options: Sequence[str], seconds: float) -> Report | str:
    """The report, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="headrace-audit-") as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(requirements))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--requirement", str(file)),
            *("--format", "json", "--progress-spinner", "off", "--timeout", str(_SOCKET_SECONDS), *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, said = await asyncio.wait_for(process.communicate(), seconds)
        except TimeoutError:
            process.kill()
            await process.communicate()
            return f"no answer within {seconds:.0f} s"
    try:
        return msgspec.json.decode(out, type=Report)
    except msgspec.DecodeError:
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"pip-audit ended with status {process.returncode}"


def judged(outcome: Outcome, known: dict[str, str]) -> tuple[list[str], bool]:
    """(lines to print, whether the requirements may stay as they are)."""
    lines, good = [], True
    for dependency, advisory in outcome.found:
        reason = next((known[name] for name in (advisory.id, *advisory.aliases) if name in known), None)
        good = good and reason is not None
        fixed = f"fixed in {', '.join(advisory.fix_versions)}" if advisory.fix_versions else "no fix yet"
        verdict = f"accepted {reason}" if reason else "move the pin, or list it in requirements/audit.txt with a reason"
        lines.append(f"audit: {dependency.name} {dependency.version}: {advisory.id}, {fixed}: {verdict}")
    lines += [f"audit: NOT AUDITED: {said}" for said in _together(outcome.silent)]
    lines.append(f"audit: {outcome.known} packages audited, {len(outcome.found)} advisories")
    return lines, good


def _together(silent: Iterable[str]) -> list[str]:
    """One line a reason, with the packages of all parts."""
    counts: dict[str, int] = {}
    for said in silent:
        number, _, reason = said.partition(" packages: ")
        counts[reason] = counts.get(reason, 0) + int(number)
    return [f"{count} packages: {reason}" for reason, count in counts.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE, help="of the requirements")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of what is asked over the network")
    parser.add_argument("--osv-url", help="ask this server in OSV's protocol instead of PyPI")
    told = parser.parse_args(arguments)
    options = ["--vulnerability-service", "osv", "--osv-url", told.osv_url] if told.osv_url else []
    try:
        requirements, known = pins(told.folder), accepted(told.folder / "audit.txt")
    except Unusable as error:
        print(f"audit: {error}")
        return 1
    lines, good = judged(asyncio.run(asked(requirements, options, told.seconds)), known)
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
