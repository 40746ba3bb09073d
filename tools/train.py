"""Train a model: MMDetection's installed ``tools/train.py`` with all its arguments, from any folder."""

from environment import require_packages

if __name__ == '__main__':
    require_packages()
    from embedmask_mmdet.cli.launch import train

    train()
