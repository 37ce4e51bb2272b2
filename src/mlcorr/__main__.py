"""``python -m mlcorr``: versions, what can run here and why not, and a self-check of what can."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from mlcorr import _selfcheck


def main(arguments: list[str] | None = None) -> int:
    """Print what the library finds on this machine; return 1 if an implementation is not its definition, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m mlcorr",
        description="Show versions and backends, and compare every implementation with its definition on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON, for bug reports")
    asked = parser.parse_args(arguments)
    started = time.perf_counter()

    def write(line: str) -> None:
        if not asked.json:
            print(line, flush=True)

    versions = _selfcheck.versions()
    for name, version in versions.items():
        write(f"{name:13} {version or 'not installed'}")
    found: list[dict[str, Any]] = []
    for device in _selfcheck.devices():
        about: dict[str, Any] = {"device": str(device), "description": _selfcheck.describe(device)}
        write(f"\n{device} ({about['description']})")
        backends, checks = _selfcheck.backends(device), []
        for backend in backends:
            write(f"  {backend.operation:9} {backend.name:19} {_availability(backend)}")
        for check in _selfcheck.checks(device):
            checks.append(check)
            write(f"  {check.name:45} {_verdict(check)}")
        about |= {"backends": [one._asdict() for one in backends], "checks": [one._asdict() for one in checks]}
        found.append(about)
    failures = sum(1 for about in found for check in about["checks"] if check["failure"])
    seconds = time.perf_counter() - started
    write(f"\n{f'{failures} FAIL' if failures else 'all ok'}, {seconds:.1f} s")
    if asked.json:
        report = {"versions": versions, "devices": found, "failures": failures, "seconds": round(seconds, 1)}
        print(json.dumps(report, indent=2))
    return 1 if failures else 0


def _availability(backend: _selfcheck.Backend) -> str:
    if not backend.available:
        return f"not here: {backend.reason.removeprefix(f'backend: {backend.name!r} ')}"
    return f"available; auto takes it: {backend.reason}" if backend.chosen else "available"


def _verdict(check: _selfcheck.Check) -> str:
    if check.error is None:
        return f"FAILS: {check.failure}"
    error = f"error {check.error:.0e} (float32 has {_selfcheck.UNIT:.0e})"
    return f"FAILS, {error}: {check.failure}" if check.failure else f"ok, {error}"


if __name__ == "__main__":
    sys.exit(main())
