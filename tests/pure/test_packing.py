"""What the file process says is MessagePack, as everybody reads it."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.storage.file_packing import pack

text = st.binary(max_size=300).map(lambda data: data.decode("utf-8", "surrogateescape"))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(text, inner, max_size=20),
    max_leaves=40,
)


@given(values)
def test_it_is_read_again(value: object) -> None:
    data = pack(value)
    assert msgpack.unpackb(data, raw=False, strict_map_key=False, unicode_errors="surrogateescape") == value


@pytest.mark.parametrize("size", [31, 32, 255, 256, 65535, 65536])
def test_lengths_at_their_edges(size: int) -> None:
    for value in ("a" * size, b"b" * size, [1] * size, {str(at): at for at in range(size)}):
        assert msgpack.unpackb(pack(value), raw=False) == value


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        pack({"a": object()})
