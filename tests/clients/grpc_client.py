"""Google's gRPC client through the ingress: every kind of call, trailers, errors, deadlines, cancellation, large messages, health.

usage: grpc_client.py HOST:PORT AUTHORITY
"""

import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

address, authority = sys.argv[1:]
unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def channel(authority):
    return grpc.insecure_channel(address, options=[("grpc.default_authority", authority), *unlimited])


def code(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("no error")


with channel(authority) as one:
    unary = one.unary_unary("/test.Echo/Unary")
    answer, call = unary.with_call(b"hello", timeout=60)
    assert answer == b"hello"
    trailers = dict(call.trailing_metadata())
    assert trailers["length"] == "5" and trailers["blob-bin"] == b"\x00\xff", trailers

    assert list(one.unary_stream("/test.Echo/ServerStream")(b"100")) == [str(n).encode() for n in range(100)]
    assert one.stream_unary("/test.Echo/ClientStream")(iter([b"x" * 1000] * 100)) == b"100000"

    # Each answer comes before the next question is asked: nothing may wait for more.
    answers = []

    def questions():
        for number in range(20):
            assert len(answers) == number
            yield str(number).encode()
            deadline = time.monotonic() + 10
            while len(answers) == number:
                assert time.monotonic() < deadline
                time.sleep(0.001)

    for answer in one.stream_stream("/test.Echo/Bidi")(questions()):
        answers.append(answer)
    assert len(answers) == 20

    large = bytes(range(256)) * (40 << 12)  # 40 MiB: no limit of HTTP/1.1's applies
    assert unary(large, timeout=120) == large

    error = code(lambda: one.unary_unary("/test.Echo/Fail")(b""))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "žluťoučký" in error.details(), error
    assert dict(error.trailing_metadata())["why"] == "asked"
    error = code(lambda: one.unary_unary("/test.Echo/Nothing")(b""))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

    # The deadline reaches the app, and ends the call.
    left = float(one.unary_unary("/test.Echo/TimeLeft")(b"", timeout=50))
    assert 0 < left <= 51, left  # rounded up on the way
    hang = one.unary_unary("/test.Echo/Hang")
    error = code(lambda: hang(b"", timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    # So does the caller's leaving.
    call = hang.future(b"")
    time.sleep(0.3)
    call.cancel()
    count = one.unary_unary("/test.Echo/Cancelled")
    deadline = time.monotonic() + 10
    while int(count(b"")) < 2:
        assert time.monotonic() < deadline, count(b"")
        time.sleep(0.02)

    health = health_pb2_grpc.HealthStub(one)
    state = health.Check(health_pb2.HealthCheckRequest(service="test.Echo")).status
    assert state == health_pb2.HealthCheckResponse.SERVING

with channel("nobody.localhost") as nobody:
    error = code(lambda: nobody.unary_unary("/test.Echo/Unary")(b"", timeout=10))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    assert "No service is served under this host" in error.details(), error
print("grpc: all well")
