"""A gRPC server without generated code: messages are bytes. All four kinds of call, errors, cancellation, health."""

import os
import signal
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

cancelled = 0
lock = threading.Lock()


def unary(request, context):
    context.set_trailing_metadata((("length", str(len(request))), ("blob-bin", b"\x00\xff")))
    return request


def server_stream(request, context):
    for number in range(int(request)):
        yield f"{number}".encode()


def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def bidi(requests, context):
    yield from requests


def fail(request, context):
    context.set_trailing_metadata((("why", "asked"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: žluťoučký")


def hang(request, context):
    """Until the caller has gone; counts who has."""
    global cancelled
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait()
    with lock:
        cancelled += 1
    return b""


def count_cancelled(request, context):
    return str(cancelled).encode()


def time_left(request, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 1e6 else f"{left:.3f}".encode()


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
    "Cancelled": grpc.unary_unary_rpc_method_handler(count_cancelled),
    "TimeLeft": grpc.unary_unary_rpc_method_handler(time_left),
}

if __name__ == "__main__":
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=unlimited)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", METHODS),))
    states = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    states.set("test.Echo", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"[::]:{os.environ['PORT']}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(5))
    server.wait_for_termination()
