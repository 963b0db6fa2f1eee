"""``distributed-comfy``: the commands and what they are for; each is imported when it is called, so that help comes at once."""
from __future__ import annotations

import click

from distributed_comfy import __version__
from distributed_comfy.cli.commands import Commands


def _demo() -> click.Command:
    from distributed_comfy.cli.demo import demo

    return demo


def _run() -> click.Command:
    from distributed_comfy.cli.run import run

    return run


def _worker() -> click.Command:
    from distributed_comfy.cli.worker import worker

    return worker


def _up() -> click.Command:
    from distributed_comfy.cli.up import up

    return up


def _hosts() -> click.Command:
    from distributed_comfy.cli.hosts import hosts

    return hosts


def _workers() -> click.Command:
    from distributed_comfy.cli.workers import workers

    return workers


def _models() -> click.Command:
    from distributed_comfy.cli.models import models

    return models


def _jobs() -> click.Command:
    from distributed_comfy.cli.jobs import jobs

    return jobs


def _flower() -> click.Command:
    from distributed_comfy.cli.flower import flower

    return flower


def _doctor() -> click.Command:
    from distributed_comfy.cli.doctor import doctor

    return doctor


def _invite() -> click.Command:
    from distributed_comfy.cli.invite import invite

    return invite


def _redis() -> click.Command:
    from distributed_comfy.cli.redis import redis

    return redis


def _metrics() -> click.Command:
    from distributed_comfy.cli.metrics import metrics

    return metrics


def _serve() -> click.Command:
    from distributed_comfy.cli.serve import serve

    return serve


def _comfyui() -> click.Command:
    from distributed_comfy.cli.comfyui import comfyui

    return comfyui


_COMMANDS = {
    "demo": (_demo, "Eight pictures on two workers of its own; needs no GPU and no ComfyUI."),
    "run": (_run, "Run a prompt on all workers and save what it makes."),
    "worker": (_worker, "Serve one GPU (or the CPU) until it is stopped."),
    "up": (_up, "Run this host's workers: one on each GPU, started again when they end."),
    "comfyui": (_comfyui, "Make your own ComfyUI the master: install the node pack there, remove it, look at it."),
    "hosts": (_hosts, "List hosts with their devices, workers and configuration."),
    "workers": (_workers, "List and show workers, read their logs; add, edit, start, stop and drain them, on any host."),
    "models": (_models, "What a prompt needs and which workers lack it; all model files."),
    "jobs": (_jobs, "List, show, cancel, retry, pause, resume, attach to jobs; change their priority."),
    "invite": (_invite, "Let one more host work for this cluster; list them, shut one out."),
    "doctor": (_doctor, "Look for whatever is wrong with servers, disk, engine and workers."),
    "flower": (_flower, "Show workers and items on a web page."),
    "serve": (_serve, "Let workers join through HTTP: a proxy, a tunnel, port 443."),
    "metrics": (_metrics, "Tell Prometheus how the cluster is."),
    "redis": (_redis, "Rights of users on a Redis of your own."),
}


@click.group(cls=Commands, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="distributed-comfy")
def main() -> None:
    """Every GPU you own works on one ComfyUI prompt.

    \b
    A first look, on this machine alone:
      distributed-comfy demo
    \b
    For real: one worker for each GPU, any number of machines, one prompt.
      distributed-comfy up                                      (leave it running)
      distributed-comfy invite --name pc2                       (prints the one command to run on another machine)
      distributed-comfy run graph.json --items 32 --out pictures

    Without DC_REDIS_URL all commands of one user share an embedded Redis on this host. Each command has --help.

    \b
    Exit status: 0 done, 1 failed, 2 bad input, 3 no worker or no Redis, 4 not invited any more, 130 cancelled.
    """


if __name__ == "__main__":
    main()
