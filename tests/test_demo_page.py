"""The page to drop an image on: what it reads, draws and writes, its command, its server, and a visit by a browser."""

import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from embedmask_mmdet.cli import demo as command
from embedmask_mmdet.demo_page import downloads, picture
from embedmask_mmdet.demo_page.server import is_local, private_folder, start
from embedmask_mmdet.demo_page.torch_model import TorchModel
from embedmask_mmdet.demo_page.uploads import UploadLimits, list_examples
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMask
from embedmask_mmdet.runtime import Detections
from embedmask_mmdet.runtime.masks import Bitmaps
from tests.builders import CLASSES, ROOT, build_responsive_detector, responsive_model_cfg, tiny_cfg
from tests.scripts import run_script

HEIGHT, WIDTH = 96, 128
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
needs_gradio = pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='needs gradio')
needs_browser = pytest.mark.skipif(
    importlib.util.find_spec('playwright') is None or CHROMIUM is None, reason='needs playwright and chromium'
)


def make_image(seed=0):
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(blocks, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def make_detections(shape=(HEIGHT, WIDTH)):
    """A ring, a square inside its hole, and a bar that covers a part of the ring."""
    masks = np.zeros((3, *shape), bool)
    masks[0, 10:70, 10:70] = True
    masks[0, 20:60, 20:60] = False
    masks[1, 35:45, 35:45] = True
    masks[2, 12:18, 50:110] = True
    boxes = np.array([[10, 10, 70, 70], [35, 35, 45, 45], [50, 12, 110, 18]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.4], np.float32), np.array([0, 1, 1])
    return Detections(boxes, scores, labels, ('disc', 'a/b <c>'), shape, Bitmaps(masks))


# Uploads


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.tif', '.webp', '.ppm'])
def test_common_formats_are_read(suffix, tmp_path):
    cv2.imwrite(str(tmp_path / f'a{suffix}'), make_image())
    image = UploadLimits().read(tmp_path / f'a{suffix}')
    assert image.shape == (HEIGHT, WIDTH, 3) and np.abs(image.astype(int) - make_image()).mean() < 12


def test_gray_16_bits_are_read(tmp_path):
    gray = make_image()[..., 0]
    cv2.imwrite(str(tmp_path / 'a.tif'), gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(UploadLimits().read(tmp_path / 'a.tif')[..., 0], gray)


def make_huge_png(side):
    """Make a small file whose header says that the image is huge."""
    chunks = [b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0), b'IDAT' + zlib.compress(b'')]
    packed = [struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk)) for chunk in chunks]
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)


def write_uploads(folder):
    cv2.imwrite(str(folder / 'good.png'), make_image())
    content = (folder / 'good.png').read_bytes()
    (folder / 'cut.png').write_bytes(content[: len(content) // 2])
    cv2.imwrite(str(folder / 'good.jpg'), make_image())
    content = (folder / 'good.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(content[: len(content) // 2])
    (folder / 'text.png').write_text('no image')
    (folder / 'empty.png').touch()
    (folder / 'huge.png').write_bytes(make_huge_png(8000))
    (folder / 'bomb.png').write_bytes(make_huge_png(100_000))
    Image.fromarray(make_image()).save(folder / 'other.png', format='GIF')
    (folder / 'heavy.png').write_bytes(bytes(2**20 + 1))


@pytest.mark.parametrize(
    'name, message',
    [
        ('cut.png', 'The image is incomplete or broken. Save or copy it again.'),
        ('cut.jpg', 'The image is incomplete or broken. Save or copy it again.'),
        ('text.png', 'This is not an image, or it is broken. Choose a file in BMP, JPEG, PNG, PPM, TIFF, WEBP.'),
        ('empty.png', 'This is not an image'),
        ('other.png', 'This is not an image'),
        ('huge.png', 'The image has 8000x8000 pixels, the limit is 25 million. Make it smaller.'),
        ('bomb.png', 'The image has far too many pixels. Make it smaller.'),
        ('heavy.png', 'The file has 1.0 MB, the limit is 1 MB. Choose a smaller one.'),
    ],
)
def test_bad_uploads_are_explained_without_their_path(name, message, tmp_path, monkeypatch):
    write_uploads(tmp_path)
    if name in ('huge.png', 'bomb.png', 'heavy.png'):
        monkeypatch.setattr(cv2, 'imdecode', None)  # they must not be decoded
    with pytest.raises(InputError) as raised:
        UploadLimits(megabytes=1).read(tmp_path / name)
    assert str(raised.value).startswith(message) and str(tmp_path) not in str(raised.value)


def test_examples_are_the_images_of_a_folder(tmp_path):
    with pytest.raises(InputError, match='does not exist. Name a folder with images'):
        list_examples(tmp_path / 'none')
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(InputError, match='has no images. Name a folder with images'):
        list_examples(tmp_path)
    for name in ('b.png', 'a.JPG'):
        (tmp_path / name).touch()
    assert [file.name for file in list_examples(tmp_path)] == ['a.JPG', 'b.png']


# Pictures


@pytest.mark.parametrize(
    'size, expected', [((96, 128), (768, 1024)), ((640, 1280), (640, 1280)), ((3000, 1500), (1280, 640))]
)
def test_pictures_have_the_size_of_a_screen(size, expected):
    image = np.full((*size, 3), 128, np.uint8)
    drawn = picture.draw_detections(image, make_detections(size))
    assert drawn.shape == (*expected, 3) and drawn.dtype == np.uint8


def changed(parts, selected=None):
    """Return where a picture differs from the image, in image pixels of 8x8 picture pixels."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    drawn = picture.draw_detections(image, make_detections(), parts, selected)
    return (drawn != 128).any(axis=2)


def test_parts_of_a_picture():
    masks = changed(['masks'])
    assert masks[8 * 15, 8 * 15] and masks[8 * 40, 8 * 40]
    assert not masks[8 * 28, 8 * 28] and not masks[8 * 80, 8 * 80]  # the hole of the ring, and the background
    boxes = changed(['boxes'])
    assert boxes[8 * 30, 8 * 10] and not boxes[8 * 15, 8 * 15]
    scores = changed(['scores'])
    assert scores[8 * 35 - 6, 8 * 35 + 8] and not scores[8 * 40 :].any()
    assert not changed([]).any()
    assert changed([], selected=1)[8 * 35 + 4, 8 * 40] and not changed([], selected=1)[8 * 15, 8 * 15]


@pytest.mark.parametrize(
    'place, expected',
    [((15, 40), 0), ((40, 40), 1), ((55, 15), 2), ((28, 28), 0), ((120, 90), None), ((5, 5), None)],
    ids=['ring', 'square', 'smaller of two', 'box of the ring', 'background', 'corner'],
)
def test_clicked_instance(place, expected):
    x, y = place
    assert picture.find_instance(make_detections(), 8 * x + 4, 8 * y + 4) == expected


def test_click_without_detections():
    assert picture.find_instance(make_detections()[[]], 10, 10) is None


# Downloads


def test_coco_file_loads_with_its_masks(tmp_path):
    (tmp_path / 'a.json').write_text(downloads.make_coco(make_detections(), 'a.png'))
    coco = COCO(str(tmp_path / 'a.json'))
    assert coco.imgs == {1: dict(id=1, file_name='a.png', height=HEIGHT, width=WIDTH)}
    assert [category['name'] for category in coco.loadCats([1, 2])] == ['disc', 'a/b <c>']
    annotations = coco.imgToAnns[1]
    np.testing.assert_array_equal([coco.annToMask(each) for each in annotations], make_detections().masks)
    assert [each['category_id'] for each in annotations] == [1, 2, 2]
    assert [each['score'] for each in annotations] == pytest.approx([0.9, 0.8, 0.4])
    assert [each['area'] for each in annotations] == [2000, 100, 360]
    assert annotations[2]['bbox'] == [50, 12, 60, 6]
    assert len(coco.loadRes(annotations).anns) == 3


def test_masks_are_a_label_image_and_one_file_each():
    archive = zipfile.ZipFile(io.BytesIO(downloads.make_masks(make_detections())))
    names = ['README.txt', 'labels.png', 'masks/001_disc_0.90.png', 'masks/002_a_b_c_0.80.png']
    assert archive.namelist() == [*names, 'masks/003_a_b_c_0.40.png']
    images = {
        name: cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
        for name in archive.namelist()[1:]
    }
    labels = images.pop('labels.png')
    assert labels.dtype == np.uint16 and labels.shape == (HEIGHT, WIDTH)
    assert (labels[15, 60], labels[15, 100], labels[40, 40], labels[0, 0]) == (1, 3, 2, 0)
    np.testing.assert_array_equal(np.stack(list(images.values())) == 255, make_detections().masks)


def test_files_without_detections():
    content = json.loads(downloads.make_coco(make_detections()[[]], 'a.png'))
    assert content['annotations'] == [] and len(content['categories']) == 2
    archive = zipfile.ZipFile(io.BytesIO(downloads.make_masks(make_detections()[[]])))
    assert archive.namelist() == ['README.txt', 'labels.png']


@pytest.mark.parametrize(
    'name, clean', [('../a b', 'a_b'), ('...', 'image'), ('Zelle-ä.1', 'Zelle-ä.1'), ('', 'image')]
)
def test_clean_names(name, clean):
    assert downloads.clean_name(name) == clean


# Models


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, its checkpoint, and a folder of images."""
    folder = tmp_path_factory.mktemp('demo')
    cfg = tiny_cfg(folder, folder / 'unused')
    cfg.model = responsive_model_cfg()
    cfg.dump(folder / 'tiny.py')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=build_responsive_detector().state_dict(), meta=meta), folder / 'tiny.pth')
    (folder / 'images').mkdir()
    cv2.imwrite(str(folder / 'images' / 'a.png'), make_image())
    (folder / 'images' / 'b.png').write_text('no image')
    return folder


@pytest.fixture(scope='module')
def model(folder):
    init_default_scope('mmdet')
    return TorchModel(folder / 'tiny.py', folder / 'tiny.pth', 'cpu')


def test_another_threshold_needs_no_second_run(model, monkeypatch):
    head = model._model.mask_head
    assert (model.mask_thr, model.class_names, model.name) == (head.mask_thr, CLASSES, 'tiny.pth')
    result = model.detect(make_image())
    monkeypatch.setattr(head, 'mask_thr', 0.8)
    expected = model.detect(make_image()).sample.pred_instances
    assert not hasattr(head, 'keep_embed') or not head.keep_embed
    monkeypatch.setattr(EmbedMask, 'predict', None)
    detections = result.cut_masks_at(0.8)
    np.testing.assert_array_equal(detections.masks, expected.masks.numpy())
    np.testing.assert_array_equal(detections.scores, expected.scores.numpy())
    assert detections.masks.any() and (detections.masks != result.cut_masks_at(0.2).masks).any()
    chosen = detections[[2, 0]]
    np.testing.assert_array_equal(chosen.masks, detections.masks[[2, 0]])
    assert chosen.rles == [detections.rles[2], detections.rles[0]]


def test_explanation_of_an_instance(model):
    instance, pixels = model.detect(make_image()).explain(1, 0.0)
    assert instance.shape[1] == pixels.shape[1] == 1200 and instance.dtype == np.uint8


# The command


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run the command in an empty folder."""

    def run(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['demo.py'])
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
        monkeypatch.setattr(command.signal, 'signal', lambda *args: None)  # of this process
        with mock.patch.dict(os.environ):
            command.main([str(folder / arg) if str(arg).startswith('tiny') else str(arg) for arg in args])

    return run


@pytest.mark.parametrize(
    'args, message',
    [
        (['tiny.pth'], 'MODEL is either a config and a checkpoint (CONFIG CHECKPOINT), or one file that ends in .onnx'),
        (['tiny.py', 'model.onnx'], 'MODEL is either'),
        (['tiny.py', 'tiny.pth', 'tiny.pth'], 'MODEL is either'),
        (['model.onnx', '--max-mb', '0'], '--max-mb and --max-megapixels must be above 0'),
    ],
)
def test_wrong_arguments(run, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(*args)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_missing_gradio_is_one_line(run, monkeypatch):
    monkeypatch.setattr(command.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit) as end:
        run('tiny.py', 'tiny.pth')
    assert end.value.code == (
        "demo.py: error: Gradio makes the page, and is not installed. Install it with `pip install 'gradio>=6'`."
    )


@pytest.mark.parametrize(
    'args, message',
    [
        (['missing.onnx'], 'missing.onnx does not exist'),
        (['none.py', 'tiny.pth'], 'the config none.py does not exist'),
        (['tiny.py', 'none.pth'], 'the checkpoint none.pth does not exist'),
        (['tiny.py', 'tiny.pth', '--examples', 'none'], 'the folder of examples none does not exist'),
        (['tiny.py', 'tiny.pth', '--host', '203.0.113.7'], '--host 203.0.113.7 with port 7860 cannot be used: '),
        (['tiny.py', 'tiny.pth', '--port', '99999'], '--host 127.0.0.1 with port 99999 cannot be used: '),
    ],
)
@needs_gradio
def test_errors_are_one_line(run, args, message):
    with pytest.raises(SystemExit) as end:
        run(*args)
    assert end.value.code.startswith('demo.py: error: ') and message in end.value.code


def test_tool_is_the_command():
    ran = run_script(ROOT / 'tools/misc/demo.py', ['--help'], ROOT)
    assert ran.code == 0 and '--max-megapixels' in ran.stdout


def test_nothing_of_pytorch_is_needed_for_onnx():
    code = """
import sys
for name in ('torch', 'mmcv', 'mmdet', 'mmengine', 'pycocotools', 'matplotlib'):
    sys.modules[name] = None
from embedmask_mmdet.cli import demo
from embedmask_mmdet.demo_page import downloads, onnx_model, picture, server, uploads
import importlib.util
if importlib.util.find_spec('gradio'):
    sys.modules.pop('matplotlib')  # which Gradio looks for
    from embedmask_mmdet.demo_page import page
"""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr[-2000:]


@needs_gradio
def test_command_serves_the_page(run, folder, monkeypatch, capsys):
    import gradio
    import httpx

    answers = []
    monkeypatch.setattr(gradio.Blocks, 'block_thread', lambda self: answers.append(httpx.get(self.local_url)))
    run('tiny.py', 'tiny.pth', '--examples', folder / 'images', '--port', '7998')
    (answer,) = answers
    assert answer.status_code == 200 and 'EmbedMask: tiny.pth' in answer.text
    captured = capsys.readouterr()
    assert 'Open http://127.0.0.1:7998/ in a browser' in captured.out and 'no password' not in captured.out
    assert f'skipped {folder}/images/b.png: This is not an image' in captured.err


@needs_gradio
def test_interrupt_is_quiet_and_removes_uploads(run, tmp_path, monkeypatch):
    def interrupt(*args):
        Path(os.environ['GRADIO_TEMP_DIR'], 'upload.png').touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(command, 'load_model', interrupt)
    with pytest.raises(SystemExit) as end:
        run('tiny.py', 'tiny.pth')
    assert end.value.code == 130 and not list(tmp_path.glob('embedmask-demo-*'))


@pytest.mark.parametrize(
    'host, local', [('127.0.0.1', True), ('localhost', True), ('::1', True), ('0.0.0.0', False), ('example.org', False)]
)
def test_local_hosts(host, local):
    assert is_local(host) == local


# The server


@contextmanager
def serve(page, folder):
    with mock.patch.dict(os.environ), mock.patch.object(tempfile, 'tempdir', str(folder)), private_folder():
        blocks = page.build()
        try:
            yield start(blocks, '127.0.0.1', None, 1)
        finally:
            blocks.close(verbose=False)


@pytest.fixture(scope='module')
def page(model, folder):
    pytest.importorskip('gradio')
    from embedmask_mmdet.demo_page.page import Page

    files = [folder / 'images' / 'a.png', folder / 'images' / 'b.png']
    return Page(model, explains=True, limits=UploadLimits(megabytes=1, megapixels=1), examples=files)


@pytest.fixture(scope='module')
def address(page, tmp_path_factory):
    with serve(page, tmp_path_factory.mktemp('uploads')) as address:
        yield address


def send(address, file):
    """Send what should be an uploaded file to the page; return what the page answers."""
    import httpx

    page = httpx.get(f'{address}config').json()
    (event,) = [each['id'] for each in page['dependencies'] if each['targets'][0][1] == 'upload']
    data = dict(data=[dict(file, meta={'_type': 'gradio.FileData'}), 0.0, 0.5, []], fn_index=event)
    joined = httpx.post(f'{address}gradio_api/queue/join', json=dict(data, session_hash='visitor'))
    assert joined.status_code == 200
    with httpx.stream('GET', f'{address}gradio_api/queue/data?session_hash=visitor', timeout=30) as stream:
        for line in stream.iter_lines():
            if 'process_completed' in line:
                return json.loads(line.removeprefix('data: '))
    raise AssertionError('no answer')


@needs_gradio
def test_only_uploaded_files_are_opened(address, folder, monkeypatch):
    import httpx

    opened = []
    monkeypatch.setattr(UploadLimits, 'read', lambda self, file: opened.append(file))
    for path in (folder / 'images' / 'a.png', 'README.md', '../../etc/passwd', 'http://127.0.0.1/a.png'):
        answer = send(address, dict(path=str(path), url='http://127.0.0.1/a.png'))
        assert not answer['success'], path
    assert opened == []
    assert 'Upload the file itself, not its address.' in answer['output']['error']
    for path in (folder / 'images' / 'a.png', '/etc/passwd', ROOT / 'README.md'):
        assert httpx.get(f'{address}gradio_api/file={path}').status_code == 403


@needs_gradio
def test_server_has_limits(address):
    import httpx

    assert address.startswith('http://127.0.0.1:')
    upload = f'{address}gradio_api/upload'
    assert httpx.post(upload, files=dict(files=('a.png', bytes(2**20 + 1)))).status_code == 413
    assert httpx.get(address, headers=dict(host='elsewhere.example')).status_code == 400
    policy = httpx.get(address).headers['content-security-policy']
    assert "default-src 'self'" in policy and 'http' not in policy


@needs_gradio
def test_wrong_example_is_refused(page):
    for index in (-1, 1, 2.0, 'a.png', [0, 0], None):  # the second file is not an image
        with pytest.raises(InputError, match='There is no such example'):
            page.detect_example(SimpleNamespace(index=index), 0.3, 0.5, [])


@needs_gradio
def test_texts_are_escaped():
    from embedmask_mmdet.demo_page.page import Shown, describe, describe_instance

    found = describe(make_detections(), Shown(None, '<b>.png', 0.1))
    assert found.startswith('&lt;b&gt;.png') and '2 a/b &lt;c&gt;, 1 disc' in found
    assert '<c>' not in describe_instance(make_detections(), 1)
    assert 'nothing found' in describe(make_detections()[[]], Shown(None, 'a', 0.1))


# A browser


@pytest.fixture
def browser(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        browser = chromium.new_page(viewport=dict(width=1280, height=900))
        browser.set_default_timeout(60_000)
        browser.goto(address)
        browser.wait_for_selector('#upload input[type=file]', state='attached')
        yield browser
        chromium.close()


def upload(browser, path):
    browser.set_input_files('#upload input[type=file]', str(path))


def wait_for_text(browser, selector, text):
    browser.wait_for_function(f'document.querySelector({selector!r})?.innerText.includes({text!r})')


def click_picture(browser, place, size):
    """Click a place of the image, ``(x, y)``."""
    box = browser.locator('#picture img').bounding_box()
    x, y = ((at + 0.5) / side for at, side in zip(place, size))
    browser.mouse.click(box['x'] + x * box['width'], box['y'] + y * box['height'])


@pytest.mark.slow
@needs_gradio
@needs_browser
def test_visit(browser, address, model, folder, tmp_path):
    hosts = set()
    browser.on('request', lambda request: hosts.add(request.url.partition('//')[2].partition('/')[0]))
    write_uploads(tmp_path)
    upload(browser, tmp_path / 'good.png')
    wait_for_text(browser, '#summary', f'{WIDTH}x{HEIGHT} pixels')
    first = browser.get_attribute('#picture img', 'src')

    # Sliders draw the picture again.
    detections = model.detect(make_image()).cut_masks_at(0.5)
    browser.fill('#score input[type=range]', '0')
    counts = {name: (detections.labels == i).sum() for i, name in enumerate(CLASSES)}
    wait_for_text(browser, '#summary', ', '.join(f'{count} {name}' for name, count in counts.items() if count))
    browser.fill('#mask input[type=range]', '0.9')
    browser.wait_for_function(f'document.querySelector("#picture img").getAttribute("src") != {first!r}')
    browser.fill('#mask input[type=range]', '0.5')
    browser.wait_for_timeout(1500)

    # A click explains the instance.
    inside = np.argwhere(detections.masks[0])
    y, x = next(place for place in inside if picture.find_instance(detections, *(8 * place[::-1] + 4)) == 0)
    click_picture(browser, (x, y), (WIDTH, HEIGHT))
    wait_for_text(browser, '#about', f'1. {CLASSES[detections.labels[0]]}, score {detections.scores[0]:.2f}')
    browser.wait_for_selector('#instance img')
    assert browser.evaluate('document.querySelector("#instance img").naturalWidth') in (0, 1200)
    assert browser.locator('#pixels img').count() == 1

    # Downloads
    with browser.expect_download() as download:
        browser.click('text=Save COCO JSON')
    assert download.value.suggested_filename == 'good-coco.json'
    content = json.loads(download.value.path().read_text())
    assert len(content['annotations']) == len(detections)
    assert content['annotations'][0]['segmentation']['counts'] == detections.rles[0]['counts'].decode()
    with browser.expect_download() as download:
        browser.click('text=Save PNG masks')
    assert len(zipfile.ZipFile(download.value.path()).namelist()) == 2 + len(detections)

    # A broken file gets a message, and the page stays as it is.
    summary = browser.inner_text('#summary')
    for name, message in (('cut.jpg', 'incomplete or broken'), ('text.png', 'not an image'), ('huge.png', '8000x8000')):
        upload(browser, tmp_path / name)
        browser.wait_for_selector(f'.toast-body:has-text("{message}")')
        browser.wait_for_selector('#upload input[type=file]', state='attached')
    assert browser.inner_text('#summary') == summary and 'good.png' in summary

    # Of the examples, only the image can be chosen.
    assert browser.locator('#examples button.thumbnail-item').count() == 1
    browser.click('#examples button.thumbnail-item')
    wait_for_text(browser, '#summary', 'a.png')
    assert hosts == {address.partition('//')[2].strip('/')}
