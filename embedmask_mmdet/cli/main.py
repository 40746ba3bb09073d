"""The command ``embedmask``: the tools of this package, from any folder."""

from __future__ import annotations

import difflib
import sys

from embedmask_mmdet import __version__
from embedmask_mmdet.locations import SCRIPTS

# Command: script, what it is for.
COMMANDS = {
    'train': ('tools/train.py', 'train a model'),
    'test': ('tools/test.py', 'measure AP'),
    'predict': ('demo/image_demo.py', 'draw detections on images and videos'),
    'explain': ('tools/misc/explain.py', 'draw how the masks of an image come about'),
    'demo': ('tools/misc/demo.py', 'show a model on a web page'),
    'export': ('tools/deployment/export_onnx.py', 'write a model to an ONNX file'),
    'test-onnx': ('tools/deployment/test_onnx.py', 'measure AP of an ONNX file'),
    'nuclei': ('tools/dataset_converters/nuclei.py', 'write the microscopy image of the examples to data/nuclei'),
    'check-data': ('tools/misc/check_data.py', 'find mistakes in annotations and images'),
    'suggest-config': ('tools/misc/suggest_config.py', 'write a config for your annotation file'),
    'thresholds': ('tools/analysis_tools/score_thresholds.py', 'find the best score threshold of each class'),
    'report': ('tools/analysis_tools/report.py', "write a page about a model's mistakes, or about the data"),
    'get-flops': ('tools/analysis_tools/get_flops.py', 'count parameters and multiply-adds'),
    'convert': ('tools/model_converters/embedmask_to_mmdet.py', "convert a checkpoint of the authors' code"),
    'publish': ('tools/model_converters/publish_model.py', 'make a checkpoint small enough to share'),
    'doctor': ('tools/misc/doctor.py', 'check this installation, and say how to mend it'),
}
USAGE = (
    'usage: embedmask COMMAND [ARGUMENTS]\n\n'
    + '\n'.join(f'  {command:16}{purpose}' for command, (_, purpose) in COMMANDS.items())
    + '\n\n`embedmask COMMAND --help` lists the arguments. Configs of this package can be named without their folder:\n'
    '`embedmask train embedmask_r50_1x_coco.py`. `embedmask --version` prints the version.'
)


def main() -> None:
    """Run the command that is named first, with the other arguments."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help', 'help'):
        print(USAGE)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    command = sys.argv[1]
    if command == '--version':
        print(f'embedmask_mmdet {__version__}')
        return
    if command not in COMMANDS:
        similar = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f'Did you mean {similar[0]}?' if similar else f'Commands: {", ".join(COMMANDS)}.'
        sys.exit(f'embedmask: error: there is no command {command}. {hint}')
    script = SCRIPTS / COMMANDS[command][0]
    if not script.is_file():
        sys.exit(f'embedmask: error: {script} is missing, so this installation is incomplete. Install it again.')
    # Scripts import modules of their own folder, and name themselves in messages.
    sys.path.insert(0, str(script.parent))
    sys.argv = [f'embedmask {command}', *sys.argv[2:]]
    # `runpy` would put the path of the script into sys.argv.
    exec(compile(script.read_text('utf-8'), script, 'exec'), {'__name__': '__main__', '__file__': str(script)})


if __name__ == '__main__':
    main()
