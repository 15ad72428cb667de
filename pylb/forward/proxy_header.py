"""The PROXY header that goes to a server before the client's first byte."""

from collections.abc import Callable

from pylb.core.address import Address
from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import header
from pylb.forward.admission import Admission
from pylb.forward.session import Half, Session
from pylb.forward.sockets import folded


def header_to_server(
    session: Session, client: Half, version: ProxyProtocol, own_id: bytes, new_unique_id: Callable[[], bytes]
) -> bytes:
    """`own_id`: this pylb's, see core/proxy_protocol. Raises OSError if the client's socket has no address any more."""
    policy, admission = session.frontend.frontend.policy, session.admission
    if policy.send_unique_id and (admission is None or not admission.unique_id):
        admission = session.admission = admission or Admission()
        admission.unique_id = new_unique_id()
    ours = client.sock.getsockname()
    local = Address(folded(ours[0]), ours[1])
    return header(
        version,
        Address(folded(session.address[0]), session.address[1]),
        local if admission is None or admission.local is None else admission.local,
        crc32c=policy.send_crc32c or (admission is not None and policy.pass_tlvs and admission.crc32c),
        unique_id=admission.unique_id if admission is not None and (policy.send_unique_id or policy.pass_tlvs) else b"",
        # Only behind another proxy. Without one in front, the server gets the header that HAProxy would send.
        path=admission.path + own_id if admission is not None and admission.local is not None else b"",
        tlvs=admission.tlvs if admission is not None and policy.pass_tlvs else b"",
    )
