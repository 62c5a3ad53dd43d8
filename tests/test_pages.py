"""The table of pages."""

from __future__ import annotations

import pytest

from drift_cli.engine.chunks import LARGEST, pieces
from drift_cli.engine.kernels.triton.memory import grouping
from drift_cli.engine.layout import PAGE, SLACK, Layout
from drift_cli.engine.pages import Pages, Stock
from drift_cli.engine.plan import NoRoom

WINDOW = 300
LAYOUT = Layout((WINDOW, WINDOW, WINDOW, 0) * 2, (2,) * 8, ((4, 4),) * 8)


def _pages(count: int = 200) -> Pages:
    return Pages(grouping(LAYOUT).windows, 3, 8 * PAGE, count)


def _free(stock: Stock) -> int:
    """Pages that can be taken."""
    assert stock.limit is not None
    assert len(set(stock.unused)) == len(stock.unused)
    assert all(0 < page < stock.count for page in stock.unused)
    return len(stock.unused) + stock.limit - stock.count


def test_layers_that_keep_the_same_tokens_share_groups_of_one_size() -> None:
    groups = grouping(LAYOUT)
    assert (groups.size, groups.windows) == (2, (WINDOW, WINDOW, WINDOW, 0))
    assert len(set(groups.places)) == 8
    for layer, (group, _) in enumerate(groups.places):
        assert groups.windows[group] == LAYOUT.windows[layer]


def test_no_page_is_given_twice_and_all_come_back() -> None:
    pages = _pages()
    stock = pages.stocks[0]
    whole = _free(stock)
    for row in range(3):
        pages.reserve(row, 2 * PAGE + 1 + row * PAGE)
    given = pages.held[pages.held > 0]
    assert len(set(given.tolist())) == len(given) == whole - _free(stock) == 4 * (3 + 4 + 5)
    assert all(pages.held[where] == number for where, number in pages.changed.items())
    assert set(zip(*pages.held.nonzero(), strict=True)) == set(pages.changed)
    for row in range(3):
        pages.release(row)
    assert _free(stock) == whole == 199
    assert not pages.held.any()
    assert not any(pages.changed.values())


def test_windowed_layers_give_back_what_nothing_can_come_back_for() -> None:
    pages = _pages()
    pages.reserve(0, 8 * PAGE)
    pages.trim(0, 7 * PAGE)
    first = (7 * PAGE - WINDOW + 1 - SLACK) // PAGE
    for group, window in enumerate(pages.windows):
        kept = pages.held[group, 0] > 0
        assert kept.tolist() == [window == 0 or page >= first for page in range(8)]
    held = (pages.held > 0).sum()
    pages.trim(0, 7 * PAGE)
    assert (pages.held > 0).sum() == held
    pages.release(0)
    assert _free(pages.stocks[0]) == 199


def test_what_does_not_fit_changes_nothing() -> None:
    pages = _pages(10)
    pages.reserve(0, PAGE)
    before = pages.held.copy()
    with pytest.raises(NoRoom):
        pages.reserve(1, 3 * PAGE)
    with pytest.raises(NoRoom):
        pages.reserve(0, 8 * PAGE + 1)
    assert (pages.held == before).all()


def test_a_rewritten_history_is_encoded_from_where_it_changed_or_from_the_beginning() -> None:
    assert LAYOUT.rewound(200, 20) == 20
    assert LAYOUT.rewound(1000, 1000 - SLACK) == 1000 - SLACK
    assert LAYOUT.rewound(1000, 1000 - SLACK - 1) == 0
    assert Layout((0,), (1,), ((4, 4),)).rewound(1000, 20) == 20


def test_pieces_depend_on_the_chunk_alone() -> None:
    found = list(pieces(range(LARGEST + 70), 1000, LARGEST + 10))
    assert [(piece.start, len(piece.ids), piece.counted) for piece in found] == [
        (1000, LARGEST, LARGEST),
        (1000 + LARGEST, 70, 10),
    ]
