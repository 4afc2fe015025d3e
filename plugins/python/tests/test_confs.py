"""Tokens, their lives, and what an instance of a plugin keeps."""

import pytest
from apisix.runner.confs import Confs, Step, UnknownPlugin
from apisix.runner.plugin.core import PLUGINS, PluginBase


class Counting(PluginBase):
    made = 0

    def name(self):
        return "counting"

    def config(self, conf):
        if conf == "bad":
            raise ValueError("a bad configuration")
        Counting.made += 1
        self.length = len(conf)
        return conf.upper()


class Slotted(PluginBase):
    __slots__ = ("kept",)

    def name(self):
        return "slotted"

    def config(self, conf):
        self.kept = conf


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_first_class_of_a_name_counts():
    class Another(PluginBase):
        def name(self):
            return "counting"

    assert PLUGINS["counting"] is Counting


def test_a_chain_by_its_token(clock):
    confs = Confs(10, clock)
    token = confs.prepare("k", [("counting", "abc"), ("slotted", None)])
    chain = confs.get(token)
    assert [(step.name, step.conf) for step in chain.steps] == [("counting", "ABC"), ("slotted", None)]
    assert chain.texts == {"counting": "abc", "slotted": ""}
    assert confs.get(token + 1) is None and confs.get(0) is None


def test_config_is_called_once_for_a_key(clock):
    confs, before = Confs(10, clock), Counting.made
    first = confs.prepare("k", [("counting", "a")])
    assert confs.prepare("k", [("counting", "a")]) == first
    assert Counting.made == before + 1
    assert confs.prepare("k", [("counting", "b")]) != first
    assert confs.prepare("", [("counting", "a")]) != confs.prepare("", [("counting", "a")])


def test_what_is_too_old_is_forgotten(clock):
    confs = Confs(10, clock)
    old, renewed = confs.prepare("old", []), confs.prepare("renewed", [])
    clock.now += 11
    assert confs.get(old) is not None, "a call may be on its way when the gateway renews"
    assert confs.prepare("renewed", []) == renewed
    clock.now += 2
    assert confs.get(old) is None and confs.get(renewed) is not None
    assert confs.prepare("old", []) != old
    assert len(confs) == 2


def test_tokens_of_two_runners_differ():
    # one in a million million; a restarted runner must not take the tokens of the last one for its own
    assert len({Confs(10).prepare("", []) for _ in range(4)}) > 1


def test_what_cannot_be_prepared():
    confs = Confs(10)
    with pytest.raises(UnknownPlugin, match="no plugin `nobody` is loaded; there are: .*counting"):
        confs.prepare("k", [("nobody", "")])
    with pytest.raises(ValueError):
        confs.prepare("k", [("counting", "bad")])
    assert len(confs) == 0


@pytest.mark.parametrize("name, attribute, value", [("counting", "length", 3), ("slotted", "kept", "abc")])
def test_each_call_has_an_instance_of_its_own(name, attribute, value):
    step = Step(name, "abc")
    one, two = step.instance(), step.instance()
    assert one is not two and type(one) is PLUGINS[name]
    setattr(one, attribute, "changed")
    assert getattr(two, attribute) == value == getattr(step.instance(), attribute)
