"""Ctrl-C in blocks that must not be left half done."""

import os
import signal

import pytest

from loaders.quantize.interrupts import interrupts_deferred


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_it_is_raised_at_the_end_once():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        press()
        press()
        done.append(True)
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_raised_where_the_block_heeds_it_and_not_again():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred() as embeddings_and_head:
        with interrupts_deferred() as inner:  # part of the outer one
            inner()
            press()
        try:
            embeddings_and_head()
        except KeyboardInterrupt:
            done.append(True)
            raise
        done.append(False)
    assert done == [True]


def test_another_handler_is_called_in_its_stead():
    calls = []
    previous = signal.signal(signal.SIGINT, lambda *arguments: calls.append(arguments))
    try:
        with interrupts_deferred() as heed:
            press()
            assert not calls
            heed()
            assert len(calls) == 1
        assert len(calls) == 1
    finally:
        signal.signal(signal.SIGINT, previous)
