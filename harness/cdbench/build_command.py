"""`cdbench build`: makes the image that `--runner docker` runs in."""

import json
from dataclasses import asdict
from typing import Any

import click

from cdbench.errors import UserError


@click.command()
@click.option(
    "--cuda/--cpu",
    default=None,
    help="With torch's CUDA build, on an NVIDIA base, or the CPU build [as this machine has a GPU].",
)
@click.option("--from-host", is_flag=True, help="From this machine's Python, in seconds; .venv is mounted, not copied.")
@click.option(
    "--base", metavar="IMAGE", help="In place of the Dockerfile's base: NAME@sha256:DIGEST, or one the engine has."
)
@click.option("--python", metavar="IMAGE", help="The same for the image that --cuda takes its Python from.")
@click.option("--wheels", metavar="IMAGE", help="An image whose files are wheels, where no index has them.")
@click.option(
    "--mirror", metavar="URL", help="Where the base's packages come from, should it lack some: http://mirror.example."
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="id=ID,src=FILE",
    help="pip_conf (pip's configuration) or ca_bundle (certificates); mounted for one step, in no layer.",
)
@click.option("--json", "as_json", is_flag=True, help="The image as JSON on stdout.")
def build(from_host: bool, as_json: bool, **options: Any) -> None:
    """Build the image of today's lock, from a base pinned by digest. Its tag is a hash of base, Dockerfile and lock.

    \b
    cdbench build                        # for this machine: CUDA or CPU
    cdbench build --cuda
    cdbench build --from-host            # no registry, no index: for this machine only
    cdbench build --base mirror.example/python@sha256:... --secret id=pip_conf,src=$HOME/.config/pip/pip.conf

    CDBENCH_DOCKER names the docker client that builds; any other on PATH that has BuildKit is taken else.
    """
    from cdbench.containers import images
    from cdbench.requirements import nvidia_driver

    def say(text: str) -> None:
        click.echo(text, err=True)

    cuda = options.pop("cuda")
    if cuda is None and not from_host and (cuda := nvidia_driver() is not None):
        say("this machine has an NVIDIA GPU: the CUDA build (--cpu for the other)")
    if from_host:
        if cuda or any(options.values()):
            raise UserError(
                "--from-host takes this machine as it is: no --cuda, --base, --python, --wheels, --mirror or --secret beside it"
            )
        image = images.build_from_host(say)
    elif options["python"] and not cuda:
        raise UserError("--python is for --cuda; the CPU image's base is a Python")
    else:
        secrets = options.pop("secrets")
        image = images.build("cuda" if cuda else "cpu", say, images.Sources(**options), secrets)
    click.echo(json.dumps(asdict(image), indent=1) if as_json else f"{image.tag}  {image.id}")
