"""What the program `quaybridge` runs, and `python -m quaybridge`: the command line, and what may befall it anywhere."""

from __future__ import annotations

import sys


def main() -> None:
    """Do what the arguments say, and exit. Nothing is imported before Ctrl-C is provided for."""
    try:
        import signal

        from quaybridge.standard_streams import OutputLost, prepare_streams

        # Whoever started it may ignore that, and what it starts would too: then nobody is told how a process ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        prepare_streams()
        try:
            from quaybridge.command_line import application

            application(sys.argv[1] if len(sys.argv) > 1 else None)(prog_name="quaybridge")
        except OutputLost as lost:
            lost.explain()
            raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
