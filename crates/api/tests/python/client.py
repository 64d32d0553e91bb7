# A service's life through google-cloud-run, as a user would write it. Arguments: the transport, and the API's address where the
# client is to go straight there.
import sys

import grpc
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import field_mask_pb2

transport = sys.argv[1]
anonymous = AnonymousCredentials()

def client(kind):
    if len(sys.argv) < 3:
        return kind(credentials=anonymous, transport=transport)
    if transport == "rest":
        return kind(credentials=anonymous, transport="rest", client_options={"api_endpoint": "http://" + sys.argv[2]})
    return kind(transport=kind.get_transport_class("grpc")(channel=grpc.insecure_channel(sys.argv[2])))

services = client(run_v2.ServicesClient)
revisions = client(run_v2.RevisionsClient)
parent = "projects/demo/locations/us-central1"
name = parent + "/services/hello"

service = run_v2.Service(template=run_v2.RevisionTemplate(containers=[run_v2.Container(image="example.test/hello")]))
created = services.create_service(parent=parent, service=service, service_id="hello").result(timeout=60)
assert created.name == name, created
assert created.terminal_condition.state == run_v2.Condition.State.CONDITION_SUCCEEDED, created

try:
    services.create_service(parent=parent, service=service, service_id="hello")
    raise SystemExit("a second service of the same name was created")
except exceptions.Conflict as error:
    assert "already exists" in error.message, error

read = services.get_service(name=name)
assert read.etag and read.generation == 1 and not read.reconciling, read
assert [s.name for s in services.list_services(parent=parent)] == [name]

read.template.containers[0].env = [run_v2.EnvVar(name="A", value="1")]
updated = services.update_service(service=read).result(timeout=60)
assert updated.generation == 2 and updated.template.containers[0].env[0].value == "1", updated

masked = run_v2.Service(name=name, labels={"team": "x"})
request = run_v2.UpdateServiceRequest(service=masked, update_mask=field_mask_pb2.FieldMask(paths=["labels"]))
updated = services.update_service(request=request).result(timeout=60)
assert dict(updated.labels) == {"team": "x"} and updated.template.containers[0].env[0].name == "A", updated

try:
    services.update_service(service=read)
    raise SystemExit("a stale etag was taken")
except exceptions.Conflict:  # 409 over REST, ABORTED over gRPC
    pass

bad = run_v2.Service(template=run_v2.RevisionTemplate(containers=[run_v2.Container(image="")]))
try:
    services.create_service(parent=parent, service=bad, service_id="bad")
    raise SystemExit("a service without image was created")
except exceptions.BadRequest as error:  # InvalidArgument over gRPC is one
    assert "template.containers[0].image" in error.message, error

names = [r.name for r in revisions.list_revisions(parent=name)]
assert len(names) == 2 and all(n.startswith(name + "/revisions/hello-") for n in names), names
assert revisions.get_revision(name=names[0]).service == "hello"

policy = services.get_iam_policy(request=iam_policy_pb2.GetIamPolicyRequest(resource=name))
policy.bindings.append(policy_pb2.Binding(role="roles/run.invoker", members=["allUsers"]))
services.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=name, policy=policy))
policy = services.get_iam_policy(request=iam_policy_pb2.GetIamPolicyRequest(resource=name))
assert policy.bindings[0].members == ["allUsers"], policy

failing = run_v2.Service(template=run_v2.RevisionTemplate(containers=[run_v2.Container(image="example.test/missing")]))
try:
    services.create_service(parent=parent, service=failing, service_id="failing").result(timeout=60)
    raise SystemExit("a service that can't start was reported as ready")
except exceptions.GoogleAPICallError as error:
    assert "missing" in str(error), error

services.delete_service(name=name).result(timeout=60)
try:
    services.get_service(name=name)
    raise SystemExit("the service is still there")
except exceptions.NotFound as error:
    assert "Resource 'hello' of kind 'SERVICE'" in error.message, error

print("all as expected")
