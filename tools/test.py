"""Test a model: MMDetection's installed ``tools/test.py`` with all its arguments, from any folder.

``--out NAME.json`` and ``--format-only`` are added: they write result files for the COCO server.
"""

from environment import require_packages

if __name__ == '__main__':
    require_packages()
    from embedmask_mmdet.cli.testing import test

    test()
