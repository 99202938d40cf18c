"""Which machine of a learner this is, from the command line."""

import argparse

import pytest

from common.errors import ConfigError
from learner.nodes import Node, add_arguments, read_node


def node(*argv: str) -> Node | None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_node(parser.parse_args(argv))


def test_a_learner_on_one_machine_is_no_node() -> None:
    assert node() is None
    assert node("--nproc", "8") is None


def test_ranks_are_counted_over_the_machines() -> None:
    second = node("--nproc", "4", "--nnodes", "2", "--node-rank", "1", "--rdzv", "127.0.0.1:29500")
    assert second == Node(1, 2, 4, "127.0.0.1", 29500)
    environment = second.environment(3)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("7", "3", "8")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("127.0.0.1", "29500")
    assert environment["GLOO_SOCKET_IFNAME"].startswith("lo")


def test_a_network_that_was_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert Node(0, 2, 1, "127.0.0.1", 29500).environment(0)["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--nnodes", "2"), "meet at --rdzv HOST:PORT"),
        (("--nnodes", "2", "--rdzv", "host"), "meet at --rdzv HOST:PORT"),
        (("--nnodes", "2", "--rdzv", "host:0"), "meet at --rdzv HOST:PORT"),
        (("--nnodes", "2", "--rdzv", "host:1", "--node-rank", "2"), "--node-rank 2 is none of --nnodes 2"),
        (("--node-rank", "1"), "--node-rank 1 is none of --nnodes 1"),
        (("--nnodes", "2", "--rdzv", "host:1", "--nproc", "0"), "need --nproc N of at least 1"),
        (("--nnodes", "2", "--rdzv", "host:1"), "need --nproc N of at least 1"),
    ],
)
def test_what_does_not_say_who_is_where_is_one_sentence(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        node(*argv)
