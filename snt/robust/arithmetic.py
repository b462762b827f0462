"""Word problems in arithmetic, written from templates: a task for who has no data set and no Hub.

Two to three steps with small whole numbers, answered with the steps and a last line `#### N`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Problem = tuple[str, str]

_NAMES = ("Amina", "Bruno", "Chiara", "Dmitri", "Elena", "Farid", "Grete", "Hugo", "Ines", "Jonas")
_THINGS = ("marbles", "stickers", "postcards", "beads", "buttons", "shells", "stamps", "pencils")
_FOODS = ("rolls", "plums", "biscuits", "pears", "muffins", "tomatoes", "eggs", "carrots")
_PLACES = ("library", "market", "harbour", "school", "museum", "stadium")


def problems(count: int, seed: int) -> list[Problem]:
    """`count` different (question, answer) pairs; the same seed gives the same ones."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        question, answer = draw.choice(_TEMPLATES)(draw)
        found.setdefault(question, answer)
    return list(found.items())


def _gathering(draw: random.Random) -> Problem:
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    start, more, given = draw.randint(20, 90), draw.randint(5, 60), draw.randint(2, 19)
    held = start + more
    return (
        f"{name} has {start} {thing} in a box and finds {more} more in a drawer. After giving "
        f"{given} of them to a neighbour, how many {thing} does {name} have left?",
        f"{name} has {start} + {more} = {held} {thing} in all.\n"
        f"After giving some away, {held} - {given} = {held - given} are left.\n#### {held - given}",
    )


def _buying(draw: random.Random) -> Problem:
    name, food = draw.choice(_NAMES), draw.choice(_FOODS)
    packs, each, price = draw.randint(2, 9), draw.randint(3, 12), draw.randint(2, 9)
    count = packs * each
    return (
        f"At the market {name} buys {packs} bags with {each} {food} in each. One of the {food} "
        f"costs {price} coins. How many coins does {name} pay?",
        f"There are {packs} * {each} = {count} {food}.\n"
        f"They cost {count} * {price} = {count * price} coins.\n#### {count * price}",
    )


def _sharing(draw: random.Random) -> Problem:
    thing, children, each = draw.choice(_THINGS), draw.randint(3, 9), draw.randint(4, 15)
    kept = draw.randint(1, 20)
    total = children * each + kept
    return (
        f"A teacher has {total} {thing}, keeps {kept} for next year and shares the others equally "
        f"among {children} children. How many {thing} does each child get?",
        f"The children share {total} - {kept} = {total - kept} {thing}.\n"
        f"Each gets {total - kept} / {children} = {each}.\n#### {each}",
    )


def _travelling(draw: random.Random) -> Problem:
    name, place = draw.choice(_NAMES), draw.choice(_PLACES)
    hours, speed, rest = draw.randint(2, 6), draw.randint(4, 18), draw.randint(3, 25)
    first = hours * speed
    return (
        f"{name} rides for {hours} hours at {speed} km an hour and then has {rest} km more to go "
        f"to the {place}. How long is the whole way, in km?",
        f"The first part is {hours} * {speed} = {first} km.\n"
        f"The whole way is {first} + {rest} = {first + rest} km.\n#### {first + rest}",
    )


def _saving(draw: random.Random) -> Problem:
    name, thing = draw.choice(_NAMES), draw.choice(("lamp", "kite", "radio", "tent", "globe"))
    weeks, weekly, gift = draw.randint(3, 9), draw.randint(4, 14), draw.randint(5, 20)
    saved = weeks * weekly
    price = saved + gift + draw.randint(5, 40)
    lacking = price - saved - gift
    return (
        f"{name} wants a {thing} that costs {price} coins, saves {weekly} coins a week for {weeks} "
        f"weeks and is given {gift} coins. How many coins are still lacking?",
        f"{name} saves {weeks} * {weekly} = {saved} coins.\n"
        f"With the gift that is {saved} + {gift} = {saved + gift} coins.\n"
        f"So {price} - {saved + gift} = {lacking} are lacking.\n#### {lacking}",
    )


def _doubling(draw: random.Random) -> Problem:
    name, other = draw.sample(_NAMES, 2)
    food, first, times = draw.choice(_FOODS), draw.randint(6, 30), draw.randint(2, 5)
    second = first * times
    return (
        f"{name} picks {first} {food} and {other} picks {times} times as many. How many {food} do "
        "they have together?",
        f"{other} picks {first} * {times} = {second} {food}.\n"
        f"Together they have {first} + {second} = {first + second}.\n#### {first + second}",
    )


_TEMPLATES: tuple[Callable[[random.Random], Problem], ...] = (
    _gathering,
    _buying,
    _sharing,
    _travelling,
    _saving,
    _doubling,
)
