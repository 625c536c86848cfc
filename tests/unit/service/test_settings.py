import errno
import json
import socket

import pytest
from pydantic import ValidationError

from service.settings import Settings, SetupError, check_addresses, describe, environment_names, reason_of
from service.store.connection import node_urls, redis_url, redis_wait


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("NOTELLM_DATA_DIR", raising=False)


def test_a_nested_name_takes_two_underscores(monkeypatch):
    monkeypatch.setenv("NOTELLM_HTTP__PORT", "8080")
    monkeypatch.setenv("NOTELLM_INDEX__ADDRESSES", '["a:1", "/run/b.sock"]')

    settings = Settings()

    assert settings.http.port == 8080
    assert settings.index.addresses == ("a:1", "/run/b.sock")


@pytest.mark.parametrize("name", ["NOTELLM_PORT", "NOTELLM_HTTP_PORT", "NOTELLM_HTTP__PROT", "NOTELLM_HTTP"])
def test_a_misspelt_name_is_no_silent_default(monkeypatch, name):
    monkeypatch.setenv(name, "8080")

    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_permission(monkeypatch, host):
    monkeypatch.setenv("NOTELLM_HTTP__HOST", host)

    assert Settings().http.host == host


@pytest.mark.parametrize(("given", "host"), [("[::1]", "::1"), ("::1", "::1"), ("ip6-localhost", "ip6-localhost")])
def test_an_address_may_have_the_brackets_that_it_has_in_a_url(monkeypatch, given, host):
    monkeypatch.setenv("NOTELLM_OPS__HOST", given)

    assert Settings().ops.host == host


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NOTELLM_HTTP__PORT", "65536"),
        ("NOTELLM_HTTP__PORT", "-1"),
        ("NOTELLM_OPS__PORT", "70000"),
        ("NOTELLM_HTTP__HOST", ""),
        ("NOTELLM_OPS__HOST", " "),
    ],
)
def test_what_nobody_can_listen_at_is_refused_at_the_start(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    with pytest.raises(ValidationError) as error:
        Settings()

    [one] = error.value.errors()
    assert "NOTELLM_" + "__".join(map(str, one["loc"])).upper() == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NOTELLM_WORKER__ADDRESSES", '["127.0.0.1:65536"]'),
        ("NOTELLM_WORKER__ADDRESSES", '["127.0.0.1"]'),
        ("NOTELLM_WORKER__ADDRESSES", "[]"),
        ("NOTELLM_INDEX__ADDRESSES", '["127.0.0.1:1,127.0.0.1:x"]'),
        ("NOTELLM_INDEX__ADDRESSES", f'["/{"x" * 107}"]'),
    ],
)
def test_an_address_that_is_none_is_named(monkeypatch, name, value):
    check_addresses(Settings())
    monkeypatch.setenv(name, value)

    with pytest.raises(SetupError, match=f"^{name}"):
        check_addresses(Settings())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EROFS, "x", "/a"), "/a: Read-only file system"),
        (FileExistsError(errno.EEXIST, "x", b"/a"), "/a: there is a file where a folder should be"),
        (
            OSError(errno.EADDRINUSE, "error while attempting to bind on ('::1', 1): y"),
            "Address already in use",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
    ],
)
def test_why_the_system_refuses_is_said_in_its_words(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "notes.example.org", "localhost.example.org"])
def test_listening_to_everybody_is_refused_unless_allowed(monkeypatch, host):
    monkeypatch.setenv("NOTELLM_HTTP__HOST", host)
    with pytest.raises(ValidationError, match="NOTELLM_HTTP__ALLOW_OPEN"):
        Settings()

    monkeypatch.setenv("NOTELLM_HTTP__ALLOW_OPEN", "1")
    assert Settings().http.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "notes.example.org"])
def test_with_keys_it_may_listen_to_everybody(monkeypatch, host):
    monkeypatch.setenv("NOTELLM_HTTP__HOST", host)
    monkeypatch.setenv("NOTELLM_KEYS_FILE", "keys.json")

    assert Settings().http.host == host


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "http://localhost:5173",
        "HTTPS://App.Example",
        "http://[::1]:8080",
        "capacitor://localhost",
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(monkeypatch, origin):
    monkeypatch.setenv("NOTELLM_HTTP__CORS_ORIGINS", json.dumps([origin]))
    assert Settings().http.cors_origins == (origin.lower(),)


@pytest.mark.parametrize(
    "origin",
    ["app.example", "https://app.example/", "https://app.example/x", "https://*.example", "null", "", "https://"],
)
def test_what_is_no_origin_is_refused(monkeypatch, origin):
    monkeypatch.setenv("NOTELLM_HTTP__CORS_ORIGINS", json.dumps([origin]))
    with pytest.raises(ValidationError, match="an origin such as"):
        Settings()


def test_the_key_of_a_command_in_the_environment_is_no_unknown_setting(monkeypatch):
    monkeypatch.setenv("NOTELLM_KEY", "hunter2")

    assert "hunter2" not in repr(Settings()) + "".join(describe(Settings()))


def test_every_setting_is_described_and_its_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("NOTELLM_REDIS_URL", "redis://:hunter2@localhost/0")
    monkeypatch.setenv("NOTELLM_HTTP__ALLOW_OPEN", "1")
    settings = Settings()

    lines = list(describe(settings))

    assert [line.split("=")[0] for line in lines[::2]] == list(environment_names())
    assert "NOTELLM_HTTP__ALLOW_OPEN=1" in lines
    assert "hunter2" not in "\n".join(lines) + repr(settings)
    assert not any("None Default" in line for line in lines[1::2])


def test_what_is_described_can_be_written_into_the_environment(monkeypatch):
    before = Settings()
    for line in list(describe(before))[::2]:
        name, value = line.split("=", 1)
        if value:
            monkeypatch.setenv(name, value)

    assert Settings() == before


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in environment_names().values())


def test_the_url_of_redis_may_come_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "url").write_text("redis://worker:hunter2@redis:6379/0\n")
    monkeypatch.setenv("NOTELLM_REDIS_URL_FILE", str(tmp_path / "url"))

    settings = Settings()

    assert redis_url(settings) == "redis://worker:hunter2@redis:6379/0"
    assert "hunter2" not in repr(settings) + "".join(describe(settings))


def test_the_secret_of_our_processes_may_come_from_a_file_and_is_never_shown(monkeypatch, tmp_path):
    (tmp_path / "rpc").write_text("0123456789abcdef\n")
    monkeypatch.setenv("NOTELLM_RPC_SECRET_FILE", str(tmp_path / "rpc"))

    settings = Settings()

    assert settings.rpc_secret.get_secret_value() == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings) + "".join(describe(settings))


def test_a_secret_that_can_be_guessed_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("NOTELLM_RPC_SECRET", "0123456789abcde")

    with pytest.raises(ValidationError, match="fewer than 16 characters") as refused:
        Settings()
    assert "0123456789abcde" not in "".join(detail["msg"] for detail in refused.value.errors())


def test_a_file_without_url_and_a_url_twice_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTELLM_REDIS_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(ValidationError, match="No such file"):
        Settings()

    (tmp_path / "url").write_text("redis://redis:6379/0")
    monkeypatch.setenv("NOTELLM_REDIS_URL", "redis://redis:6379/1")
    with pytest.raises(ValidationError, match="both set"):
        Settings()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://h:1/abc", "'abc', which is no number"),
        ("redis://h:1/0/1", "'0/1', which is no number"),
        ("redis://h:1?db=abc", "whose value cannot be read"),
        ("redis://h:1?db=-1", "negative"),
        ("unix:///run/redis.sock?db=x", "whose value cannot be read"),
        ("redis://h:99999/0", "is not a redis://"),
        ("http://h:1/0", "is not a redis://"),
        ("redis://:12#hunter2@h:1/0", "written %23"),
        ("redis://:12/hunter2@h:1/0", "written %23, %2F"),
        ("redis://h:1/0?nonsense=hunter2", "does not know"),
        ("rediss://h:1/0?ssl_ca_certs=/nowhere/hunter2", "not there"),
        ("redis+cluster://:hunter2@h:1,h:x", "is not a redis://"),
        ("redis+cluster://:hunter2@h:1,", "no host where a node"),
        ("redis+cluster://:hunter2@", "no host where a node"),
        ("redis+cluster://:12#hunter2@h:1,h:2", "written %23"),
        ("redis+cluster://h:1,h:2/1", "none but 0"),
        ("redis+cluster://h:1,h:2?db=1", "none but 0"),
        ("rediss+cluster://h:1,h:2?nonsense=hunter2", "does not know"),
        ("unix+cluster://h:1", "is not a redis://"),
    ],
)
def test_a_url_that_would_be_read_in_another_way_is_refused_and_not_quoted(url, told):
    with pytest.raises(SetupError) as refused:
        redis_url(Settings(redis_url=url))

    assert told in str(refused.value)
    assert str(refused.value).startswith("NOTELLM_REDIS_URL ")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:1/",
        "redis://h:1/3",
        "redis://[::1]:1/0",
        "redis://user:p%23%2F%40@h:1/0",
        "rediss://h:1/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "redis://h:1?db=2&health_check_interval=5",
        "redis+cluster://h:1,h:2",
        "redis+cluster://user:p,%23@h:1,[::1]:2,h/0?health_check_interval=5",
        "rediss+cluster://h:1?ssl_cert_reqs=none",
    ],
)
def test_a_url_of_any_redis_is_taken_as_it_is(url):
    assert redis_url(Settings(redis_url=url)) == url


def test_a_url_of_a_cluster_stands_for_one_of_each_node():
    assert node_urls("rediss+cluster://user:p,@h:1,[::1]:2/0?x=y") == [
        "rediss://user:p,@h:1/0?x=y",
        "rediss://user:p,@[::1]:2/0?x=y",
    ]
    assert node_urls("redis://h:1") == node_urls("unix:///redis.sock") == []


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [("redis://h", None, 0), ("redis+cluster://h", None, 1), ("redis+cluster://h", 0, 0), ("redis://h", 2, 2)],
)
def test_writes_to_a_cluster_wait_for_one_replica_unless_another_number_is_set(url, given, expected):
    assert redis_wait(Settings(redis_url=url, redis_wait=given)) == expected
