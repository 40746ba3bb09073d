"""Serve the page: from this machine only, with limits, and without a request to anybody else."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from embedmask_mmdet.errors import InputError

if TYPE_CHECKING:
    import gradio

LOCAL_HOST = '127.0.0.1'
LOCAL_NAMES = ('127.0.0.1', 'localhost')
MAX_VISITORS = 16  # whose images are kept
MAX_WAITING = 16
FONTS = ['system-ui', 'Segoe UI', 'Roboto', 'Helvetica', 'Arial', 'sans-serif']
CODE_FONTS = ['ui-monospace', 'Consolas', 'monospace']
# Browsers load nothing from elsewhere, and no other page may frame this one.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; object-src 'none'; "
    "base-uri 'self'"
)
CSS = """
footer { display: none !important; }
#picture img { cursor: crosshair; }
#summary, #about { padding: 0 0.25rem; }
"""


@contextmanager
def private_folder() -> Iterator[None]:
    """Let Gradio keep uploads in a folder that only this user can read, and that is removed in the end."""
    with TemporaryDirectory(prefix='embedmask-demo-') as folder:
        variables = dict(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1')
        os.environ.update(variables)
        yield


def refuse_addresses() -> None:
    """Let Gradio fetch nothing: a client may send the address of a file in the place of an uploaded file."""
    from gradio import Error, processing_utils

    async def refuse(*args: Any, **kwargs: Any) -> str:
        raise Error('Upload the file itself, not its address.', print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


class AddPolicy:
    """Add a content security policy to every answer."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer a request."""

        async def send_with_policy(message: dict) -> None:
            if message['type'] == 'http.response.start':
                headers = [(b'content-security-policy', POLICY.encode()), (b'referrer-policy', b'no-referrer')]
                message['headers'] = [*message['headers'], *headers]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def is_local(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_launch_options(host: str, port: int | None, megabytes: float) -> dict[str, Any]:
    """Make the arguments of ``gr.Blocks.launch``.

    Args:
        host: Address to listen on.
        port: Port to listen on; None for the first that is free from 7860 on.
        megabytes: Largest size of a file.
    """
    from gradio.themes import Default
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A page of somebody else must not reach this one under a name that it lets point here.
    names = [*LOCAL_NAMES, host] if is_local(host) else ['*']
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=names), Middleware(AddPolicy)]
    return dict(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        max_file_size=int(megabytes * 2**20),
        state_session_capacity=MAX_VISITORS,
        app_kwargs=dict(middleware=middleware),
        allowed_paths=[],
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=Default(font=FONTS, font_mono=CODE_FONTS),
        css=CSS,
    )


def start(blocks: gradio.Blocks, host: str, port: int | None, megabytes: float) -> str:
    """Start to serve a page in the background.

    Args:
        blocks: The page.
        host: As in :func:`make_launch_options`.
        port: Likewise.
        megabytes: Likewise.

    Returns:
        The address of the page.

    Raises:
        InputError: If the host or the port cannot be used.
    """
    check_address(host, port)
    refuse_addresses()
    blocks.queue(max_size=MAX_WAITING)
    try:
        _, url, _ = blocks.launch(prevent_thread_lock=True, **make_launch_options(host, port, megabytes))
    except OSError as error:  # all of Gradio's ports are taken
        raise InputError(f'{error}. Choose another --port.') from error
    return url


def check_address(host: str, port: int | None) -> None:
    """Check that a server can listen on an address. Gradio would need seconds, and say less.

    Raises:
        InputError: If not.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(
            f'--host {host} with port {port or "7860"} cannot be used: {reason}. Choose another --host or --port.'
        ) from error
