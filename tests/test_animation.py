"""Animations: still until asked, self-contained, the same bytes every time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pkg.animation import animate

PLACES = np.array([[[0.0, 0.0]], [[1.0, 2.0]], [[3.0, -3.0]]])


def moving(**changes):
    return animate({"here": PLACES, "there": -PLACES}, 'A "point" moves.', **changes)


def test_it_is_well_formed_and_fetches_nothing():
    text = moving().html
    root = ET.fromstring(text.replace("<input", "<input/><x").replace('play">', 'play"/>', 1))
    assert root.tag == "div"
    assert "script" not in text
    assert not re.findall(r"https?:|url\(|href", text)


def test_dots_are_where_the_points_are():
    (picture,) = re.findall(r"<svg.*</svg>", moving().html)
    frames = ET.fromstring(picture).findall("g")
    assert len(frames) == 3
    # the square of 300 units from -3 to 3, below a title of 24; y points up
    drawn = [[path.get("d") for path in frame] for frame in frames]
    assert drawn[0] == ["M150 174h0", "M470 174h0"]
    assert drawn[1] == ["M200 74h0", "M420 274h0"]
    assert drawn[2] == ["M300 324h0", "M320 24h0"]


def test_it_rests_on_the_last_frame_and_moves_only_where_the_box_is_ticked():
    text = moving().html
    key = re.search(r'<div id="(\w+)"', text)[1]
    assert f"#{key} .f{{visibility:hidden}}#{key} .last{{visibility:visible}}" in text
    style = re.search(r"<style>(.*)</style>", text)[1]
    for rule in re.findall(r"([^{}]*)\{[^{}]*animation:", style):
        assert "input:checked" in rule
    assert "prefers-reduced-motion" in style
    # every rule reaches this figure alone
    for selector in re.findall(r"(#\w+[^{]*|@keyframes \w+)", style):
        assert key in selector
    assert len(re.findall('class="f last"', text)) == 1
    assert f'<label for="{key}-play">' in text
    assert 'type="checkbox"' in text
    assert "checked=" not in text


def test_the_same_arguments_give_the_same_bytes_and_others_another_name():
    assert moving().html == moving().html
    names = {re.search(r'id="(\w+)"', a.html)[1] for a in (moving(), moving(seconds=2.0))}
    assert len(names) == 2


def test_what_is_outside_is_not_drawn():
    text = animate({"a": np.array([[[9.0, 0.0]], [[0.0, 0.0]]])}, "x").html
    assert re.findall(r'<path d="([^"]*)"', text) == ["", "M150 174h0"]


def test_a_terminal_sees_one_line():
    assert repr(moving()) == 'Animation: 3 frames ("here", "there")'
    assert set(moving()._repr_mimebundle_()) == {"text/plain", "text/html"}


@pytest.mark.parametrize(
    ("panels", "changes", "message"),
    [
        ({}, {}, "at least one panel"),
        ({"a": np.zeros((2, 3))}, {}, r"panels\['a'\] must have shape"),
        ({"a": np.zeros((1, 3, 2))}, {}, "at least 2"),
        ({"a": PLACES, "b": PLACES[:2]}, {}, "same number of frames"),
        ({"a": PLACES}, {"reach": 0.0}, "reach must be positive"),
        ({"a": PLACES}, {"seconds": -1.0}, "seconds must be positive"),
    ],
)
def test_a_wrong_argument_is_named(panels, changes, message):
    with pytest.raises(ValueError, match=message):
        animate(panels, "x", **changes)
