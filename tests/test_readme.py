"""Every command and every piece of Python in the documentation runs, and every setting that it names is there.

A command runs in a small folder (``tests/documentation_folder.py``), by the rule of its program in ``RULES``.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mmdet
import pytest
import torch
from mmdet.registry import HOOKS, MODELS, TASK_UTILS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from embedmask_mmdet import models
from tests.builders import ROOT, tiny_detector
from tests.documentation_folder import NUCLEI_CHECKPOINT, make_documentation_folder
from tests.scripts import like_a_process, run_script

DOCUMENTS = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *(path for folder in ('configs', 'demo', 'docs') for path in sorted((ROOT / folder).glob('*.md'))),
]
CONFIG = 'configs/embedmask_r50_1x_coco.py'
CHECKPOINT = 'work_dirs/embedmask_r50_1x_coco/epoch_12.pth'
# Whole words, and what stands for the output of a command.
PLACEHOLDERS = {'CONFIG': CONFIG, 'CHECKPOINT': CHECKPOINT, '$CHECKPOINT': NUCLEI_CHECKPOINT}
MMDET = str(Path(mmdet.__file__).parent)
OTHERS = {
    'pip install labelme2coco': 'another program, in an environment of its own',
}


class Rule(NamedTuple):
    """How a program's commands run.

    Attributes:
        says: What it prints when all went well.
        options: What is added to the command to make it short.
        covered_by: The test that runs it in its stead, because it takes minutes or changes the machine.
        rewrites: Files of the folder that it writes; others find the old ones again.
        slow: What is in those commands that take more than some seconds; empty for all.
    """

    says: str = ''
    options: str = ''
    covered_by: str = ''
    rewrites: str = ''
    slow: str | None = None


TRAIN = Rule(says='Saving checkpoint at')
TEST = Rule(says='segm_mAP_copypaste')
# Their results are for the COCO server alone.
WITHOUT_ANNOTATIONS = re.compile(r'--format-only|coco2014-test\.py|coco-test-dev\.py')
RULES = {
    'git clone': Rule(covered_by='tests/test_setup.py::test_fresh_clone_is_set_up'),
    'pip install': Rule(covered_by='tests/test_setup.py::test_fresh_clone_is_set_up'),
    'make setup': Rule(covered_by='tests/test_setup.py::test_fresh_clone_is_set_up'),
    'make demo': Rule(covered_by='tests/test_demo.py::test_demo_reaches_its_figures_and_does_not_train_twice'),
    'make test': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'make test-slow': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'pip wheel': Rule(covered_by='tests/test_package.py::test_wheel_is_built_without_a_compiler_and_says_so'),
    'embedmask': Rule(covered_by='tests/test_package.py::test_command'),
    'make test-onedl': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'make test-slow-onedl': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'setup.py': Rule(covered_by='tests/test_setup.py::test_fresh_clone_is_set_up'),
    'mutmut': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'make mutants': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'make gpu-check': Rule(covered_by='tests/test_gpu_check.py::test_without_a_gpu_it_says_so'),
    'make docs': Rule(covered_by='tests/test_site.py::test_site_is_built_without_broken_links'),
    'make lint': Rule(covered_by='tests/test_tools.py::test_make_lists_its_targets'),
    'tools/train.py': TRAIN,
    'tools/test.py': TEST,
    'tools/dist_train.sh': TRAIN._replace(slow=''),
    'tools/dist_test.sh': TEST._replace(slow=''),
    'tools/model_converters/embedmask_to_mmdet.py': Rule(says='wrote', rewrites='models/embedmask_r50.pth'),
    'tools/model_converters/publish_model.py': Rule(
        covered_by='tests/test_package.py::test_published_checkpoint_has_the_weights_as_float16'
    ),
    'tools/dataset_converters/coco2014.py': Rule(says='valminusminival', rewrites='data/coco/annotations/*minival*'),
    'tools/analysis_tools/score_thresholds.py': Rule(says='written to'),
    'tools/analysis_tools/report.py': Rule(says='written to'),
    'tools/analysis_tools/benchmark.py': Rule(
        says='backbone', options='--images 2 --warmup 0 --threads 1', slow='--against'
    ),
    'tools/analysis_tools/benchmark_masks.py': Rule(
        says='against our kernels', options='--cases 0 --rounds 1 --threads 1 --out masks.md', slow=''
    ),
    'tools/analysis_tools/benchmark_loss.py': Rule(
        says='lean', options='--img-shape 64 96 --batch-size 1 --instances 2 --crowd 0 --repeats 1', slow=''
    ),
    'tools/analysis_tools/benchmark_loading.py': Rule(
        says='run lengths', options='configs/embedmask_r18_nuclei.py --rounds 1 --out loading.md', slow=''
    ),
    'tools/analysis_tools/get_flops.py': Rule(says='GFLOPs', options='--shape 64 96'),
    '$MMDET/.mim/tools/analysis_tools/browse_dataset.py': Rule(),
    'tools/misc/suggest_config.py': Rule(covered_by='tests/test_suggest_config.py::test_config_is_written_and_trains'),
    'tools/dataset_converters/nuclei.py': Rule(covered_by='tests/test_demo.py::test_annotations_are_the_label_image'),
    'tools/dataset_converters/make_shapes.py': Rule(options='--images 2 1 --size 64'),
    'tools/analysis_tools/compare_models.py': Rule(
        covered_by='tests/test_compare_models.py::test_comparison_goes_on_where_it_was'
    ),
    'tools/misc/check_data.py': Rule(says='0 errors'),
    'tools/misc/explain.py': Rule(says='written to', options='--detections 1'),
    'tools/misc/gpu_check.py': Rule(covered_by='tests/test_gpu_check.py::test_without_a_gpu_it_says_so'),
    'tools/misc/demo.py': Rule(covered_by='tests/test_demo_page.py::test_command_serves_the_page'),
    'fill_in.py': Rule(covered_by='tests/test_datasets.py::test_fill_in_computes_what_annotations_lack'),
    'from_labels.py': Rule(covered_by='tests/test_datasets.py::test_label_images_become_annotations'),
    'tools/deployment/export_onnx.py': Rule(covered_by='tests/test_export_onnx.py::test_tool_writes_and_verifies'),
    'tools/deployment/test_onnx.py': Rule(
        covered_by='tests/test_test_onnx.py::test_perfect_detections_have_perfect_metrics'
    ),
    '-m embedmask_mmdet.runtime': Rule(covered_by='tests/test_runtime.py::test_folders_and_videos'),
    'demo/image_demo.py': Rule(says='2 of 2 drawn'),
}


class Command(NamedTuple):
    """A command of a document, without variables, comments and `python`."""

    document: str
    text: str
    words: list[str]

    @property
    def program(self) -> str:
        """What its rule goes by."""
        words = self.words[:2] if self.words[0] in ('git', 'make', 'pip', 'npm', 'docker', '-m') else self.words[:1]
        return ' '.join(words)


def split_commands(text: str) -> list[list[str]]:
    """Split lines of a shell into commands."""
    commands = []
    for line in text.replace('\\\n', ' ').splitlines():
        if re.match(r'\w+=\$\(', line):  # named by PLACEHOLDERS
            continue
        words = shlex.split(line, comments=True)
        while words:
            end = words.index('&&') if '&&' in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and '=' in command[0]:
                command = command[1:]
            commands.append(command[1:] if command[:1] in (['python'], ['bash']) else command)
    return [command for command in commands if command and command[0] not in ('cd', 'mkdir', 'ln')]


def code_blocks(document: Path, language: str) -> list[str]:
    """Return the blocks of a language, those of lists too."""
    found = re.finditer(rf'^( *)```{language}\n(.*?)^ *```', document.read_text(), re.M | re.S)
    return [textwrap.dedent(match[2]) for match in found]


def code_spans(document: Path) -> list[str]:
    """Return what stands in backticks within text and tables, without what others call theirs."""
    spans, theirs = [], False
    for line in re.sub(r'^```.*?^```', '', document.read_text(), flags=re.M | re.S).splitlines():
        cells = line.strip().strip('|').split('|') if line.startswith('|') else []
        theirs = bool(cells) and (theirs or cells[0].strip() == 'theirs')
        spans += re.findall(r'`([^`]+)`', '|'.join(cells[1:]) if theirs else line)
    return spans


def find_commands(document: Path) -> list[Command]:
    """Return the commands of code blocks, and those within text that have arguments."""
    texts = code_blocks(document, 'bash')
    texts += [span for span in code_spans(document) if re.match(r'(python|bash|make|pip|\w+/\S+\.(py|sh)) \S', span)]
    name = str(document.relative_to(ROOT))
    return [Command(name, shlex.join(words), words) for text in texts for words in split_commands(text)]


COMMANDS = [command for document in reversed(DOCUMENTS) for command in find_commands(document)]


def is_slow(command: Command) -> bool:
    part = RULES.get(command.program, Rule()).slow
    return part is not None and part in command.text


def to_params() -> list:
    """Make a test of each command, wherever it stands."""
    commands = {command.text: command for command in COMMANDS if command.program != 'cp'}
    return [
        pytest.param(command, id=text, marks=[pytest.mark.slow] if is_slow(command) else [])
        for text, command in sorted(commands.items())
    ]


PYTHON_BLOCKS = [
    pytest.param(block, id=f'{document.relative_to(ROOT)}-{i}')
    for document in DOCUMENTS
    for i, block in enumerate(code_blocks(document, 'python'))
    if 'sys.argv' not in block  # a program, which is under RULES
]


@pytest.fixture(scope='module')
def folder_of_docs(tmp_path_factory):
    folder_of_docs = make_documentation_folder(tmp_path_factory.mktemp('folder_of_docs'))
    for source, target in (command.words[1:] for command in COMMANDS if command.program == 'cp'):
        shutil.copy(folder_of_docs / source, folder_of_docs / target)
    return folder_of_docs


def run_command(words: list[str], folder_of_docs: Path) -> str:
    """Run a program and return what it said; of files that a pattern names, two stand for all."""
    words = [
        name for word in words for name in (sorted(map(str, folder_of_docs.glob(word)))[:2] if '*' in word else [word])
    ]
    if words[0].endswith('.py'):
        ran = run_script(ROOT / words[0], words[1:], folder_of_docs)
    else:
        # Processes that share one GPU, or have none, are those of the CPU here.
        variables = dict(PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', PORT='29671')
        ran = subprocess.run(
            ['bash', str(ROOT / words[0]), *words[1:]],
            cwd=folder_of_docs,
            env={**os.environ, **variables, 'CUDA_VISIBLE_DEVICES': ''},
            capture_output=True,
            text=True,
        )
        ran = ran.returncode, ran.stdout, ran.stderr
    code, stdout, stderr = ran
    assert code == 0, f'{stdout[-1000:]}\n{stderr[-3000:]}'
    return stdout + stderr


@contextlib.contextmanager
def set_aside(folder_of_docs: Path, pattern: str) -> Iterator[None]:
    """Take files away that are to be written anew, and bring them back."""
    contents = {path: path.read_bytes() for path in (folder_of_docs.glob(pattern) if pattern else ())}
    for path in contents:
        path.unlink()
    try:
        yield
        assert all(path.is_file() for path in contents)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def written_paths(words: list[str]) -> list[str]:
    """Return what a command says that it writes."""
    paths = []
    for option, value in itertools.pairwise(words):
        if option in ('--out', '--out-dir', '--work-dir'):
            names = [value.replace('.json', f'.{kind}.json') for kind in ('bbox', 'segm')]
            paths += names if words[0] == 'tools/test.py' and value.endswith('.json') else [value]
    return paths


@pytest.mark.parametrize('command', to_params())
def test_command(command, folder_of_docs):
    if any(command.text.startswith(text) for text in OTHERS):
        pytest.skip(next(reason for text, reason in OTHERS.items() if command.text.startswith(text)))
    rule = RULES.get(command.program)
    if rule is None:
        pytest.fail(
            f'{command.document} has the command `{command.text}`, and tests/test_readme.py does not know how to run '
            f'it: add a rule for {command.program!r} to RULES'
        )
    if rule.covered_by:
        file, test = rule.covered_by.split('::')
        assert f'def {test}(' in (ROOT / file).read_text()
        if command.words[0] == 'make':
            assert re.search(rf'^{command.words[1]}:', (ROOT / 'Makefile').read_text(), re.M)
        if '/' in command.words[0]:
            assert (ROOT / command.words[0]).is_file()
        return
    words = [PLACEHOLDERS.get(word, word).replace('$MMDET', MMDET) for word in command.words]
    with set_aside(folder_of_docs, rule.rewrites):
        said = run_command([*words, *shlex.split(rule.options)], folder_of_docs)
    says = 'wrote' if WITHOUT_ANNOTATIONS.search(command.text) else rule.says
    assert says in said, said[-3000:]
    for path in written_paths(words):
        assert (folder_of_docs / path).exists(), path


@pytest.mark.parametrize('block', [param for param in PYTHON_BLOCKS if '_base_' in param.values[0]])
def test_config(block, folder_of_docs, tmp_path):
    (tmp_path / 'configs').mkdir()
    for path in (ROOT / 'configs').iterdir():
        (tmp_path / 'configs' / path.name).symlink_to(path)
    whole = tmp_path / 'configs' / 'from_document.py'
    whole.write_text(block)
    cfg = Config.fromfile(whole)
    init_default_scope('mmdet')
    MODELS.build(cfg.model)
    if 'data_root' in block:
        small = folder_of_docs / 'configs' / 'from_document.py'
        small.write_text(block)
        assert TRAIN.says in run_command(['tools/train.py', str(small)], folder_of_docs)


@pytest.mark.parametrize('block', [param for param in PYTHON_BLOCKS if '_base_' not in param.values[0]])
def test_python(block, folder_of_docs):
    given = dict(
        pixel_embed=torch.randn(16, 100, 134),
        proposal_embed=torch.randn(3, 16),
        proposal_margin=torch.full((3, 16), 0.1),
        bboxes=torch.tensor([[10.0, 20.0, 300.0, 400.0]] * 3),
        classes=('nucleus',),
    )
    if 'runtime' in block:
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    code = block if torch.cuda.is_available() else block.replace('cuda:0', 'cpu')
    with like_a_process(folder_of_docs):
        exec(compile(code, 'document', 'exec'), given)


SETTINGS = [ROOT / 'docs' / name for name in ('settings.md', 'coming-from-the-authors-code.md')]
# A setting under `model`, or an argument of a part.
SETTING = r'(?:frame|bbox_head|mask_head|test_cfg)(?:\.[a-z_]\w*)+|(?:EmbedMask[A-Z]\w*|[A-Z]\w*Loss)\.[a-z_]\w*'


def settings_table() -> list[tuple[str, str]]:
    """Return the settings in the tables of the documentation with the default that it gives for each."""
    rows = [
        row
        for document in SETTINGS
        for row in re.findall(r'^\|[^|]+\|([^|]*`[\w.]+`[^|]*)\|([^|]+)\|$', document.read_text(), re.M)
    ]
    return [
        (setting, default.strip().strip('`'))
        for names, default in rows
        for setting in re.findall(rf'`({SETTING})`', names)
    ]


def find_part(name: str) -> type | None:
    """Return the class of a part of the model, a hook or a transform by the name that it has in configs."""
    return next((found for registry in (MODELS, TASK_UTILS, HOOKS, TRANSFORMS) if (found := registry.get(name))), None)


@functools.cache
def model_and_config() -> tuple[torch.nn.Module, Config]:
    return tiny_detector(), Config.fromfile(ROOT / CONFIG)


def default_of(setting: str) -> object:
    """Look a setting, or a part of the model, up in the config, or else at what takes it.

    Raises:
        KeyError: If nothing takes it.
    """
    *parents, name = setting.split('.')
    model, cfg = model_and_config()
    if parents[0][0].isupper():
        return inspect.signature(find_part(parents[0]).__init__).parameters[name].default
    node = cfg.model
    takers = [model.bbox_head, model.mask_head] if parents[0] == 'test_cfg' else [model]
    for parent in parents:
        node, takers = (
            node.get(parent, {}),
            [taker if parents[0] == 'test_cfg' else getattr(taker, parent, None) for taker in takers],
        )
    if name in node:
        return node[name]
    for taker in takers:
        for kind in type(taker).__mro__:
            parameters = inspect.signature(kind.__init__).parameters
            if name in parameters:
                return parameters[name].default
        if hasattr(taker, name):
            return getattr(taker, name)
    raise KeyError(f'nothing takes {setting}')


@pytest.mark.parametrize(('setting', 'default'), settings_table())
def test_setting_is_there_with_its_default(setting, default):
    with contextlib.suppress(ValueError, SyntaxError):  # which a plain name causes
        default = ast.literal_eval(default)
    assert default_of(setting) == default


def test_settings_anywhere_are_there():
    named = {
        setting
        for document in DOCUMENTS
        for setting in re.findall(rf'\b(?:{SETTING})', document.read_text())
        if not setting.endswith('.py')  # files
    }
    assert len(named) > 10
    for setting in sorted(named):
        default_of(setting)


def test_every_option_is_in_the_settings():
    """Whoever adds an argument to a part finds out that docs/settings.md needs a row for it."""
    text = (ROOT / 'docs/settings.md').read_text()
    parts = [models.EmbedMaskBoxFrame, models.EmbedMaskBoxSampling, models.LovaszHingeLoss, models.EmbedMaskNMS]
    parts += [models.EmbedMaskBoxesFromMasks, models.EmbedMaskMaskHead, models.EmbedMaskBBoxHead]
    parts += [models.EmbedMaskClassVotes]
    usual = {'self', 'args', 'kwargs', 'init_cfg', 'train_cfg', 'test_cfg', 'norm_cfg', 'reduction', 'in_channels'}
    # Set by the frame; as in FCOS; a part, whose type is in the table.
    usual |= {'initial_margin', 'conv_bias', 'num_classes', 'loss_mask', 'loss_bbox', 'sampling'}
    for part in parts:
        for name in inspect.signature(part.__init__).parameters.keys() - usual:
            assert re.search(rf'[.`]{name}`', text), f'{part.__name__}.{name}'
    source = inspect.getsource(models.EmbedMaskMaskHead._read_test_cfg)
    for name in re.findall(r"test_cfg\.get\('(\w+)'", source):
        assert f'`test_cfg.{name}`' in text


def test_parts_anywhere_are_there():
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r'`(EmbedMask[A-Z]\w*|[A-Z]\w*Loss)`', document.read_text())
    }
    assert len(named) > 8
    for name in sorted(named):
        assert find_part(name) or hasattr(models, name), name


def anchors(document: Path) -> set[str]:
    """Return what GitHub makes of the headings of a document."""
    headings = re.findall(r'^#+ (.+)$', document.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', heading).strip().lower().replace(' ', '-') for heading in headings}


def find_links() -> list:
    """Return the text and the target of each link to a file of the repository."""
    return [
        pytest.param(document, text, target, id=f'{document.relative_to(ROOT)}-{target}')
        for document in DOCUMENTS
        for text, target in re.findall(r'\[([^]]+)\]\(([^)\s]+)\)', document.read_text())
        if '://' not in target
    ]


@pytest.mark.parametrize(('document', 'text', 'target'), find_links())
def test_link_leads_somewhere(document, text, target):
    file, _, anchor = target.partition('#')
    path = document.parent / file if file else document
    assert path.exists()
    if anchor:
        assert anchor in anchors(path)
    # A link that is named like a function or class has it.
    name = text.strip('`')
    if text.startswith('`') and name.isidentifier():
        assert re.search(rf'\b{name}\b', path.read_text())


def test_unknown_setting_is_noticed():
    with pytest.raises(KeyError, match='nothing takes bbox_head.embed_dims'):
        default_of('bbox_head.embed_dims')


def test_commands_are_found(tmp_path):
    document = ROOT / 'docs' / 'example.md'  # never written
    text = (
        '```bash\nFOO=1 python a.py x \\\n  --y 2  # why\ncd b && make demo\n```\n'
        '| theirs | ours |\n| --- | --- |\n| `python theirs.py --z` | `python tools/test.py A --tta` |\n\n'
        'Call `make test`, `tools/dist_train.sh C 4`, and not `tools/train.py`.\n'
    )

    class Document(type(document)):
        def read_text(self):
            return text

    found = [command.words for command in find_commands(Document(document))]
    assert found == [
        ['a.py', 'x', '--y', '2'],
        ['make', 'demo'],
        ['tools/test.py', 'A', '--tta'],
        ['make', 'test'],
        ['tools/dist_train.sh', 'C', '4'],
    ]
