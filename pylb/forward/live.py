"""Live sessions and flows, for whoever asks about them."""

from typing import TYPE_CHECKING

from pylb.core.recorder import session_id
from pylb.core.session import SessionView, State
from pylb.forward.session import Session
from pylb.forward.sockets import folded

if TYPE_CHECKING:
    from pylb.forward.flow import Flow


def view(one: "Session | Flow", now: float) -> SessionView | None:
    """What the list of live sessions says of it. None: it has ended."""
    if one.state == State.CLOSED:
        return None
    return _view(one, now) if isinstance(one, Session) else one.view(now)


def _view(session: Session, now: float) -> SessionView:
    client, upstream, server, frontend = session.client, session.upstream, session.server, session.frontend.frontend
    return SessionView(
        folded(session.address[0]),
        session.address[1],
        frontend.name,
        frontend.listen,
        server.server.name if server is not None else "",
        server.server.address if server is not None else None,
        str(session.state),
        now - session.accepted,
        client.received if client is not None else 0,
        upstream.received if upstream is not None else 0,
        session_id(session.number),
        session.admission.asked if session.admission is not None else "",
    )
