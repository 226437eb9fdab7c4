"""`python -m memsvc.embedded up`, `… manage COMMAND` beside it, and `… test [-- PYTEST ARGUMENTS]`."""

from __future__ import annotations

import sys

from memsvc.embedded import supervisor, testing
from memsvc.embedded.process import StartError


def main(words: list[str]) -> int:
    """Returns the exit status."""
    match words:
        case ["up"]:
            supervisor.Supervisor().run()
            return 0
        case ["manage", *command] if command:
            return supervisor.Supervisor().manage(command)
        case ["test", "--", *arguments] | ["test", *arguments]:
            return testing.run(arguments)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except supervisor.Stopped:
        sys.exit(0)
    except StartError as error:
        sys.exit(f"memsvc: {error}")
