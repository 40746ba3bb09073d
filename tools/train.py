"""Train a model: MMDetection's installed ``tools/train.py`` with all its arguments, from any folder."""

from run_installed import main

if __name__ == '__main__':
    main('train.py')
