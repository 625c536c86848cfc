"""Request bodies that mean harm, or are nothing that a route takes; and one that is good."""

import gzip
import json

MARK = "x-mark-x"
NOTE = {"title": "Harbor tram", "content": "noodle", "hashtags": ["seaside"]}

HOSTILE = {
    "empty": b"",
    "spaces": b"  \n ",
    "byte order mark within": b'{"title": "a",\xef\xbb\xbf"content": "b"}',
    "two byte order marks": b"\xef\xbb\xbf" * 2 + json.dumps(NOTE).encode(),
    "not UTF-8": b'{"title": "\xff\xfe"}',
    "UTF-16": json.dumps(NOTE).encode("utf-16"),
    "UTF-16 without a mark": json.dumps(NOTE).encode("utf-16-le"),
    "UTF-32": json.dumps(NOTE).encode("utf-32"),
    # Without the time, whose bytes may be brackets. Two of its bytes are commas.
    "packed": gzip.compress(json.dumps(NOTE).encode(), mtime=0),
    "NUL byte": b"\x00",
    "NUL in a string": b'{"title": "a\\u0000b"}',
    "raw NUL in a string": b'{"title": "a\x00b"}',
    "lone surrogate": b'{"title": "\\ud800"}',
    "reversed surrogates": b'{"title": "\\udc00\\ud800"}',
    "NaN": b'{"title": "a", "exposure": NaN}',
    "infinity": b'{"title": "a", "exposure": 1e999}',
    "minus infinity": b'{"title": "a", "exposure": -Infinity}',
    "huge integer": b'{"title": "a", "exposure": ' + b"9" * 5000 + b"}",
    "64 bits and one": b'{"title": "a", "exposure": 18446744073709551616}',
    "deep array": b"[" * 100_000,
    "deep object": b'{"title":' * 20_000,
    "closed deep array": b'{"title": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "truncated": b'{"title": "a"',
    "two documents": b'{"title": "a"}{"title": "b"}',
    "null": b"null",
    "number": b"1",
    "string": b'"title"',
    "bool for int": b'{"title": "a", "exposure": true}',
    "float for int": b'{"title": "a", "exposure": 1.0}',
    "string for list": b'{"title": "a", "hashtags": "b"}',
    "null in list": b'{"title": "a", "hashtags": [null]}',
    "null title": b'{"title": null, "content": "a"}',
    "nothing said": b'{"title": " \\u3000 ", "content": "\\n"}',
    "unknown field": b'{"title": "a", "x-mark-x": 1}',
    "unknown long field": b'{"title": "a", "' + MARK.encode() * 10_000 + b'": 1}',
    "long title": json.dumps({"title": MARK * 100}).encode(),
    "form": b"title=a&content=b",
    "xml": b"<?xml version='1.0'?><note/>",
}
