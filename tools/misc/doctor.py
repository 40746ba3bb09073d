"""Check this installation: versions, operators, kernels and GPU, and say what to do about each problem.

    python tools/misc/doctor.py

The exit code is 1 if training or testing would fail.
"""

import argparse
import sys

from embedmask_mmdet.cli.doctor import check_installation


def main() -> None:
    """Print all findings; exit with 1 if one is an error."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    findings = check_installation()
    for finding in findings:
        print(finding)
    problems = sum(finding.severity != 'ok' for finding in findings)
    print(f'{problems} problem{"s" * (problems != 1)} found')
    sys.exit(any(finding.severity == 'error' for finding in findings))


if __name__ == '__main__':
    main()
