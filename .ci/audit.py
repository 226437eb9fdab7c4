"""Known vulnerabilities of every package in this environment, by the pip-audit that is named.

A run that could audit nothing has failed, not passed: pip-audit alone calls it clean when no advisory answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig


def main(pip_audit: str) -> str | None:
    """Why the audit has failed, or None."""
    words = [pip_audit, "--path", sysconfig.get_path("purelib"), "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return f"pip-audit failed:\n{done.stderr}"
    audited = [one for one in packages if "skip_reason" not in one]
    found = [(one["name"], one["version"], hole["id"]) for one in audited for hole in one["vulns"]]
    print(f"{len(audited)} of {len(packages)} packages audited, {len(found)} known vulnerabilities")
    for name, version, hole in found:
        print(f"  {name} {version}: {hole}")
    if not audited:
        return "No package could be audited: the registry's advisories do not answer."
    return "Vulnerable packages." if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
