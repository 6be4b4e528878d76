"""The command line `triton-vlm`.

Every command imports what it needs when it runs: `triton-vlm --help` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    name="triton-vlm",
    help="Vision-language models on Triton, behind the OpenAI API.",
    epilog="Start with: triton-vlm serve. Then open http://127.0.0.1:9000 in a browser, or ask with: "
    "triton-vlm chat",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_IMAGE_HELP = (
    "A PNG, JPEG, WebP or GIF file that the question is about; may be given more than once."
)
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="PATH", exists=True, dir_okay=False, help=_IMAGE_HELP),
]

_VIDEO_HELP = "An MP4 or WebM file that the question is about, if the model takes videos."
Videos = Annotated[
    list[Path] | None,
    typer.Option("--video", metavar="PATH", exists=True, dir_okay=False, help=_VIDEO_HELP),
]


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it says that torch is missing
    app()


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
    options_metavar="--model MODEL [OPTIONS]",
)
def build(context: typer.Context) -> None:
    """Build a checkpoint into a model that `serve` can serve; `build --help` lists the options."""
    from builders.command import main as build_main

    raise typer.Exit(build_main(context.args))


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A built model's name, a checkpoint folder or a Hugging Face id; the last two are "
            "built first. Default: the small model that comes with the project.",
            show_default=False,
        ),
    ] = None,
    repository: Annotated[Path, typer.Option(metavar="DIR", help="Folder of built models.")] = Path(
        "model_repository"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the OpenAI API.")] = 9000,
    host: Annotated[
        str, typer.Option(help="Address the OpenAI API listens on; 0.0.0.0 opens it to others.")
    ] = "127.0.0.1",
    triton_grpc_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Triton's gRPC port on 127.0.0.1. Default: a free one."
        ),
    ] = None,
    triton_metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Triton's metrics port on 127.0.0.1. Default: a free one."
        ),
    ] = None,
    tritonserver: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The tritonserver to use. Default: the one in PATH, else the packaged one.",
        ),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the logs. Default: ~/.cache/triton-vlm/serve-PORT."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Ask clients for a key of this file; see `key`."),
    ] = None,
    allow_anonymous: Annotated[
        bool,
        typer.Option("--allow-anonymous", help="Let others in, as --host says, without a key."),
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Certificate chain in PEM: serve HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Its private key in PEM.")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send OpenTelemetry traces to this collector."),
    ] = None,
) -> None:
    """Serve a model at http://HOST:PORT until ctrl-C: the OpenAI API below /v1, and a page to try it.

    The other settings of the API are environment variables: python -m openai_frontend --help lists
    them, and --max-n is TRITON_VLM_MAX_N.
    """
    from triton_vlm.serve import ServeOptions
    from triton_vlm.serve import serve as run

    flags = {
        "--api-key-file": api_key_file,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
        "--otlp-endpoint": otlp_endpoint,
    }
    proxy_arguments = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    if allow_anonymous:
        proxy_arguments.append("--allow-anonymous")
    options = ServeOptions(
        model=model,
        repository=repository,
        host=host,
        port=port,
        triton_grpc_port=triton_grpc_port,
        triton_metrics_port=triton_metrics_port,
        tritonserver=tritonserver,
        log_dir=log_dir,
        proxy_arguments=proxy_arguments,
    )
    raise typer.Exit(run(options))


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; the log of the API says so.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Most answers a minute. Default: no limit.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens a minute, asked and answered. Default: no limit."),
    ] = None,
) -> None:
    """Make an API key: triton-vlm key alice >> api-keys.

    The output is the line of the key file, which holds only a hash; the key itself is shown once, on
    the error stream.
    """
    from openai_frontend.api_keys import key_line, new_key
    from openai_frontend.settings import SettingsError

    secret = new_key()
    try:
        line = key_line(secret, name, requests_per_minute, tokens_per_minute)
    except SettingsError:
        _fail(f"{name!r} cannot be a name: use up to 64 letters, digits and ._-")
    typer.echo(line)
    typer.echo(f"The key of {name}, which is not shown again: {secret}", err=True)


@app.command(
    epilog='For example: triton-vlm chat --image a.png --image b.png "What is different?" Without the '
    "question it is a conversation, in which ctrl-C stops an answer."
)
def chat(
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUESTION]",
            help="What to ask. Without it: a conversation.",
            show_default=False,
        ),
    ] = None,
    image: Images = None,
    video: Videos = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="Address of the OpenAI API.")
    ] = "http://127.0.0.1:9000/v1",
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Id of the model. Default: the first one served."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="TRITON_VLM_API_KEY",
            metavar="KEY",
            help="Key of the server, if it asks for one.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="0 always answers the same.")
    ] = None,
) -> None:
    """Ask a served model; the answer is shown as it comes.

    A server that asks for an API key gets the one in TRITON_VLM_API_KEY.
    """
    from triton_vlm.chat import ChatClient, ChatError
    from triton_vlm.conversation import converse, show_answer

    files = [*(image or ()), *(video or ())]
    with ChatClient(
        url, model=model, api_key=api_key, max_tokens=max_tokens, temperature=temperature
    ) as client:
        try:
            if question is None:
                converse(client, files)
            else:
                show_answer(client.ask(question, files))
        except ChatError as exc:
            _fail(str(exc))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


@app.command()
def generate(
    model_folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a built model.")
    ],
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    image: Images = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="0 always answers the same.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Repeats an answer given at a temperature above 0.")
    ] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Accept a model built with --skip-verify.")
    ] = False,
) -> None:
    """Ask a built model in this process, without a server."""
    from python_backend.errors import VlmError
    from triton_vlm.generate import generate as run

    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    try:
        run(
            model_folder,
            prompt,
            image or [],
            {name: value for name, value in options.items() if value is not None},
            allow_unverified=allow_unverified,
        )
    except (VlmError, OSError) as exc:
        _fail(str(exc))


@app.command()
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A built model's name or folder, or a checkpoint's folder: say which limits of it "
            "fit into memory.",
            show_default=False,
        ),
    ] = None,
    repository: Annotated[Path, typer.Option(metavar="DIR", help="Folder of built models.")] = Path(
        "model_repository"
    ),
    tritonserver: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The tritonserver to use. Default: the one in PATH, else the packaged one.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say what this machine can serve, and what to do about the rest.

    The exit status is 0 if a model can be served here, 1 if not.
    """
    from triton_vlm.doctor import report
    from triton_vlm.doctor.command import examine
    from triton_vlm.launch_error import LaunchError

    try:
        findings = examine(model, repository, tritonserver)
    except LaunchError as exc:
        _fail(str(exc))
    typer.echo(report.as_json(findings) if as_json else report.as_text(findings))
    raise typer.Exit(0 if findings.can_serve else 1)


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(1)
