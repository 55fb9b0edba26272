"""Redaction: total, idempotent, bounded, and no planted secret comes through."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otel_perf import conventions as c
from otel_perf import redaction, statements
from otel_perf.redaction import MASK, MAX_LENGTH, message, query_string, redact, redis_command, sql, text, url

ANY_TEXT = st.text(max_size=300) | st.text(
    alphabet=st.sampled_from(list("aB1_ '\"`\\\n$#-/*?.,;:@()[]=&%+{}<>\x00\ud800é")), max_size=300
)
REDACTORS = (query_string, url, lambda value: sql(value).text, message, text)


@pytest.mark.parametrize("redactor", REDACTORS, ids=["query", "url", "sql", "message", "text"])
def test_any_text_is_taken_and_doing_it_twice_changes_nothing(redactor):
    """No input raises, what comes out is bounded, can be encoded and printed on one line, and is a fixed point."""

    @settings(max_examples=300, deadline=None)
    @given(ANY_TEXT)
    @example('#t\nJOIN "a"')
    @example('SELECT "' + "x" * 3000)
    @example("k" * 3000)
    @example("a=1&" * 2000)
    @example("http://h/p?" + "a=1&" * 2000)
    @example("token 'a b' c")
    def check(value: str) -> None:
        once = redactor(value)
        assert len(once) <= MAX_LENGTH
        once.encode()
        assert "\n" not in once
        assert redactor(once) == once

    check()


# SQL ------------------------------------------------------------------------------------------------------------------

SECRET = "Zq7plantedZq"
LITERALS = st.sampled_from(
    [
        f"'{SECRET}'", f"'it''s {SECRET}'", f"'-- {SECRET}'", f"'/* {SECRET}'", f"'{SECRET}\\\\'", f"N'{SECRET}'",
        f"E'\\'{SECRET}'", f"'a\\' {SECRET}'", f"'C:\\' , '{SECRET}'", f"$${SECRET}$$", f"$tag$ ' {SECRET} $tag$",
        f"q'[it's {SECRET}]'", f'"{SECRET}"', f'"a \'{SECRET}"', f"'{SECRET}\n'", f"X'{SECRET}'",
        f"U&'{SECRET}'", f"/* {SECRET} */ 1", f"/* /* {SECRET} */ 'x' */ 1", f"1 -- {SECRET}\n",
        f"/* /* x */ don't */ '{SECRET}'",
        f"1 # {SECRET}\n", f"1 --{SECRET}'\n'", f"1 #don't\n'{SECRET}'",
    ]
)  # fmt: skip
UNENDED = st.sampled_from([f"'{SECRET}", f'"{SECRET}', f"/* {SECRET}", f"$$ {SECRET}", f"q'[{SECRET}"])
PLACES = st.sampled_from(
    [
        "SELECT * FROM users WHERE name = {}", "INSERT INTO t (a, b) VALUES (1, {})", "UPDATE t SET a = {} WHERE b = 2",
        "SELECT {}, {} FROM t", "SELECT * FROM t WHERE a IN ({}, 'x') AND b LIKE 'y%'", "CALL f({})",
        'INSERT INTO "t" ("a", "b") VALUES ({}, "y")', "SELECT * FROM t WHERE a = 'x' OR b={}", "{{'find': {}}}",
        "SELECT CONCAT(`a`.`b`, {}) FROM `t`", "EXEC p @a={}", "SELECT {}::text", "PRAGMA key = {}",
        "SELECT data->>'k' FROM t WHERE data @> {}",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(PLACES, st.tuples(LITERALS, LITERALS | UNENDED))
def test_no_literal_of_any_dialect_survives_in_sql(place, literals):
    """Strings, dollar and Oracle quotes, double-quoted strings, comments, unended and ambiguous ones are masked."""
    assert SECRET not in sql(place.format(*literals)).text


@given(
    st.integers(min_value=0, max_value=10**12), st.sampled_from(["{}", "-{}", "{}.5", ".{}", "{}e{}", "0x{}", "${}"])
)
def test_no_number_survives_in_sql(number, form):
    """Whole, signed, broken, exponential, hexadecimal and money; placeholders have at most three digits."""
    shown = sql(f"SELECT * FROM t WHERE a = {form.format(number, 1)}").text
    assert re.fullmatch(r"SELECT \* FROM t WHERE a = (-?\?|\$\?|\$\d{1,3})", shown)
    if shown.endswith(("$1", str(number))):
        assert form == "${}"


@pytest.mark.parametrize(
    ("statement", "shown", "operation", "collection"),
    [
        ("SELECT * FROM users WHERE id = 42", "SELECT * FROM users WHERE id = ?", "SELECT", "users"),
        ("  select\n\t1 ", "select ?", "SELECT", None),
        ("SELECT a.b FROM public.users u JOIN x ON 1=1", None, "SELECT", "public.users"),
        ('SELECT "u"."id" FROM "u" WHERE "u"."id" = %(id)s', 'SELECT "u"."id" FROM "u" WHERE "u"."id" = %(id)s',
         "SELECT", "u"),
        ('INSERT INTO "t" ("a", "b") VALUES (%s, "x")', 'INSERT INTO "t" ("a", "b") VALUES (%s, ?)', "INSERT", "t"),
        ('INSERT INTO t ("a", "b") VALUES (?, ?), (?, ?)', 'INSERT INTO t ("a", "b") VALUES (?)', "INSERT", "t"),
        ("UPDATE ONLY t SET a = 'x'", "UPDATE ONLY t SET a = ?", "UPDATE", "t"),
        ("DELETE FROM [dbo].[a b] WHERE c=N'x'", "DELETE FROM [dbo].[a b] WHERE c=?", "DELETE", "[dbo].[a b]"),
        ("CREATE TABLE IF NOT EXISTS foo (a int)", None, "CREATE", "foo"),
        ("SELECT a FROM t WHERE b IN (1, 2, 3) LIMIT 10", "SELECT a FROM t WHERE b IN (?) LIMIT ?", "SELECT", "t"),
        ("SELECT a FROM t WHERE b = $1 AND c = :2 AND d = :n", "SELECT a FROM t WHERE b = $1 AND c = :2 AND d = :n",
         "SELECT", "t"),
        ("/* hint */ SELECT 1 -- end", "SELECT ?", "SELECT", None),
        ("SELECT * FROM (SELECT * FROM inner_t) x", None, "SELECT", "inner_t"),
        ("SELECT * FROM table_2024_01", "SELECT * FROM table_2024_01", "SELECT", "table_2024_01"),
        ("SELECT a #>> '{x}' FROM t", "SELECT a #>> ? FROM t", "SELECT", "t"),
        ("SELECT * FROM #temp", "SELECT * FROM #temp", "SELECT", "#temp"),
        ("PRAGMA table_info(x)", "PRAGMA table_info(x)", "PRAGMA", None),
        ("BEGIN", "BEGIN", "BEGIN", None),
        ("", "", None, None),
        ("'", "?", None, None),
    ],
)  # fmt: skip
def test_statements_stay_readable(statement, shown, operation, collection):
    """Names, placeholders and structure are kept; operation and table are found."""
    read = sql(statement)
    assert (read.operation, read.collection) == (operation, collection)
    if shown is not None:
        assert read.text == shown


def test_a_literal_that_is_cut_is_masked():
    """A statement over the limit that ends within a literal does not show its beginning."""
    long = "SELECT * FROM t WHERE a IN (" + "1," * 10_000 + f"'{SECRET}"
    assert SECRET not in sql(long).text
    assert SECRET not in sql("SELECT '" + SECRET * 10_000).text
    assert "xxx" not in sql("SELECT * FROM t WHERE a = " + "b + " * 509 + f'c."{"x" * 30_000}').text


def test_the_summary_is_short_and_low_in_cardinality():
    """A span is named by operation and table."""
    assert sql("select * from users where id = 5").summary == "SELECT users"
    assert sql("COMMIT").summary == "COMMIT"
    assert sql("").summary == "SQL"
    assert len(sql("x" * 5000).operation or "") == 64
    assert len(sql("SELECT * FROM " + "t" * 5000).collection or "") == 128


HOSTILE = [
    "'",
    '"',
    "/*",
    "--",
    "#",
    "$a$",
    "$$",
    "'\\",
    "\\",
    "[",
    "(?,",
    "1",
    "1.",
    " ",
    "a.",
    "q'",
    "FROM ",
    "''",
    '"."',
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_reading_a_statement_takes_one_pass(monkeypatch, piece):
    """Every step ends behind the last one's end, so the steps of twice the text are at most twice as many."""
    steps: list[tuple[int, int]] = []
    read = statements._Reader.read

    def counted(self, found, before, earlier):
        end, shown = read(self, found, before, earlier)
        steps.append((found.start(), len(self._statement) if end is None else end))
        return end, shown

    monkeypatch.setattr(statements._Reader, "read", counted)
    counts = []
    for size in (2000, 4000):
        steps.clear()
        statements._without_literals((piece * size)[:size])
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(steps))
        counts.append(len(steps))
    assert counts[1] <= 2 * counts[0] + 2


@pytest.mark.parametrize("redactor", REDACTORS[:2] + REDACTORS[3:], ids=["query", "url", "message", "text"])
@pytest.mark.parametrize("piece", ["a", "'", "a=b&", "token ", "@", "a@", "1", "http://", "\\", " ", "-", "é\ud800"])
def test_no_more_than_the_limit_is_read(redactor, piece):
    """What lies beyond the limit changes nothing, so one call costs no more than the limit does."""
    assert redactor(piece * 5000) == redactor((piece * 5000)[:MAX_LENGTH])


# Addresses ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), st.text(max_size=8))))
def test_no_value_survives_in_a_query(pairs):
    """Keys stay, every value is masked, also one without a key."""
    masked = query_string("&".join(f"{key}={SECRET}{value}" for key, value in pairs) + f"&{SECRET}")
    assert SECRET not in masked


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"https://me:{SECRET}@host:8443/a/b?token={SECRET}&x#{SECRET}",
         f"https://host:8443/a/b?token={MASK}&{MASK}"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://host", "http://host"),
        ("/path?page=2&page=3", f"/path?page={MASK}&page={MASK}"),
        ("http://host:port/", MASK),
        ("http://[", MASK),
        ("http://h/a\x00b", "http://h/a%20b"),
        (f"jdbc:postgresql://me:{SECRET}@h/db", "jdbc:postgresql://h/db"),
        (f"http://{SECRET * 300}@h/", MASK),
        ("", ""),
    ],
)  # fmt: skip
def test_addresses(address, shown):
    """User information, query values and fragment go; the rest stays an address."""
    assert url(address) == shown


def test_a_long_query_is_left_out_pair_by_pair():
    """What is over the limit does not end within a mask."""
    shown = url("http://host/?" + "a=1&" * 500)
    assert len(shown) <= MAX_LENGTH
    assert re.fullmatch(rf"http://host/\?(a={MASK}&)*a={MASK}", shown)


# Redis ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text() | st.binary() | st.integers() | st.floats()))
def test_no_argument_of_a_redis_command_survives(arguments):
    """Only the command's name is shown."""
    assert redis_command("SET", SECRET, *arguments) == "SET ?" + " ?" * min(7, len(arguments))


def test_redis_names_are_bounded():
    """Bytes, a hostile name and no name at all are taken."""
    assert redis_command(b"GET", b"k") == "GET ?"
    assert redis_command() == ""
    assert len(redis_command("X\n" * 100)) == 64


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        f"value '{SECRET}' is bad", f'column "{SECRET}"', f"b'{SECRET}'", f"it's '{SECRET} is' bad",
        f"'{SECRET} unended",
        f"password={SECRET}", f"access_token: {SECRET}", f"Authorization: Bearer {SECRET}", f"authorization={SECRET}",
        f"my_api_key = '{SECRET} b'", f"sessionid={SECRET}", f"X-Auth-Token {SECRET}", f"client_secret={SECRET}&a=b",
        f"mail to {SECRET}@example.com", f"redis://:{SECRET}@localhost:6379/0", f"http://h/p?code={SECRET}",
        f"ERREUR: une valeur\nDÉTAIL : La ligne {SECRET}", f"FEHLER: x\nZEILE 1: SELECT {SECRET}",
        f"ERROR: x\n\u0414\u0415\u0422\u0410\u041b\u0418:  {SECRET}", f"错误: x\n描述:  {SECRET}",
        f"ERREUR: DÉTAIL : en échec contient (1, {SECRET}, null).",
        f"syntaxe en entrée invalide : « {SECRET} »", f"Wert „{SECRET}“ ist",
        f"value “{SECRET}” is", f"a \u2018{SECRET}\u2019",
        f"{SECRET} here script: 0af1, on @user_script:1.", f"{SECRET} x script: f, on @user_function:1.",
        f"ERR {SECRET} script: 0af1, on @user_script:1.",
        f"Command # 1 (EVAL x) of pipeline caused error: {SECRET} y script: 0, on @user_script:1.",
        f"Key (name)=({SECRET}) already exists.", f"Failing row contains (1, {SECRET}, null).",
        f"(x) IntegrityError\n[SQL: INSERT {SECRET}]", f"x\n[parameters: ({SECRET},)]", f"x\nDETAIL:  Key {SECRET}",
        f"x\nLINE 1: SELECT {SECRET}\n", f"x\nCONTEXT: {SECRET}", f"invalid input for query argument $1: {SECRET} (x)",
        f"Command # 1 (SET {SECRET}) of pipeline caused error: WRONGTYPE", f"Command # 1 (SET {SECRET}",
        f"sk_live_{SECRET}0123456789", f"{{'password': '{SECRET}'}}", f"input_value='{SECRET}', input_type=str",
    ],
)  # fmt: skip
def test_no_secret_survives_in_an_errors_text(told):
    """What drivers, servers and applications put into messages, quoted or not."""
    assert SECRET not in message(told)


@given(st.integers(min_value=100))
def test_no_long_number_survives_in_an_errors_text(number):
    """Ids and card numbers are masked; short numbers stay."""
    assert message(f"order {number} of 2 is missing") == "order ? of 2 is missing"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("division by zero", "division by zero"),
        ("can't open '/etc/x' now", "can't open ? now"),
        ("Expecting value: line 1 column 1 (char 0)", "Expecting value: line 1 column 1 (char 0)"),
        ("connect to redis://:pw@h:6379/0 failed", "connect to redis://h:6379/0 failed"),
        ("UNIQUE constraint failed: users.email", "UNIQUE constraint failed: users.email"),
        ("Command # 1 (GET k) of pipeline caused error: WRONGTYPE", "Command of pipeline caused error: WRONGTYPE"),
        ("WRONGTYPE x y script: 0af1, on @user_script:1.", "WRONGTYPE in a Redis script"),
        ("2 errors for User\nname\n  Field required", "2 errors for User name   Field required"),
        ("", ""),
    ],
)
def test_messages_stay_readable(told, shown):
    """What says what went wrong is kept."""
    assert message(told) == shown


def test_an_exception_as_attributes():
    """Type, redacted message, and the stack as places without source lines."""

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise ValueError(f"bad '{SECRET}'")

    with pytest.raises(ValueError, match="bad") as caught:
        deep(60)
    attributes = redaction.exception(caught.value)
    assert attributes[c.EXCEPTION_TYPE] == "ValueError"
    assert attributes[c.EXCEPTION_MESSAGE] == "bad ?"
    stack = attributes[c.EXCEPTION_STACKTRACE]
    assert "in deep" in stack
    assert SECRET not in stack
    assert "raise" not in stack
    assert len(stack) <= MAX_LENGTH


def test_an_exception_that_cannot_be_shown():
    """A failing `__str__` of somebody's exception costs the text, nothing else."""

    class SickError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "SickError" in redaction.exception(SickError())[c.EXCEPTION_MESSAGE]


def test_error_types_have_their_module():
    """Builtins go by name, others with their module."""
    assert redaction.exception_type(KeyError("x")) == "KeyError"
    assert redaction.exception_type(re.error("x")).startswith("re.")


# The table ------------------------------------------------------------------------------------------------------------


def test_attributes_are_redacted_by_key():
    """Each key of the table has its redactor; others keep their value within the limit, lists item by item."""
    clean = redact(
        {
            c.URL_QUERY: f"a={SECRET}", c.URL_FULL: f"http://x:{SECRET}@h/", c.DB_QUERY_TEXT: f"SELECT '{SECRET}'",
            c.EXCEPTION_MESSAGE: f"'{SECRET}'", "http.url": f"http://h/?a={SECRET}", "http.target": f"/a?{SECRET}",
            "db.statement": f"SELECT '{SECRET}'", "http.request.header.authorization": [SECRET],
            "http.response.header.set-cookie": (SECRET, SECRET), "http.request.header.x_api_key": SECRET,
            "http.request.header.referer": [f"http://h/?a={SECRET}"], "http.referer": f"http://h/?a={SECRET}",
            "db.statement.parameters": SECRET, "db.connection_string": f"http://u:{SECRET}@h;password={SECRET}",
            "url.fragment": SECRET, "plain": "x" * 5000, "number": 5, "list": ["a\n", 1],
        }
    )  # fmt: skip
    assert SECRET not in repr(clean)
    assert clean["plain"] == "x" * MAX_LENGTH
    assert clean["number"] == 5
    assert clean["list"] == ["a ", 1]
    assert clean["http.request.header.authorization"] == [MASK]


@pytest.mark.parametrize("name", ["users/alice-smith", "users/alice smith/orders/first one", "a b", ""])
def test_names_of_documents(name):
    """The path of a Firestore document is masked to the end of its line, for an id may have spaces."""
    root = "projects/shop/databases/(default)/documents/"
    assert message(f"No document to update: {root}{name}") == f"No document to update: {root}{{id}}"
    assert message(message(f"{root}{name}")) == f"{root}{{id}}"
    assert "alice" not in message(f"404 https://firestore.test/v1/{root}{name}")


def test_keys_in_the_paths_of_addresses_within_messages():
    """An error text of a client repeats its address; what looks like a key in there is masked, once and for all."""
    shown = redaction.message(
        "failed: https://hooks.slack.com/services/T0001234/XXsecret123456 and http://a.b/users/12"
    )
    assert shown == "failed: https://hooks.slack.com/services/{token}/{token} and http://a.b/users/12"
    assert redaction.message(shown) == shown
