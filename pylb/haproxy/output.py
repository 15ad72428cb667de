"""Lines for HAProxy's runtime socket: `show sess` and `show servers state`."""

from collections.abc import AsyncGenerator, Sequence

from pylb.core.address import Address
from pylb.core.session import SessionView
from pylb.haproxy.stats import Row, is_up

SESSIONS_PER_PIECE = 100  # lines, ~1 ms

# ------------------------------------------------------------ sessions


async def session_lines(found: Sequence[SessionView]) -> AsyncGenerator[str]:
    for start in range(0, len(found), SESSIONS_PER_PIECE):
        yield "".join([_session_line(one) for one in found[start : start + SESSIONS_PER_PIECE]])


def _session_line(one: SessionView) -> str:
    kind = "tcpv6" if ":" in one.client else "tcpv4"
    return (
        f"{one.id}: proto={kind} src={Address(one.client, one.client_port)} fe={one.frontend} be={one.frontend} "
        f"srv={one.server or '<none>'} age={int(one.age)}s state={one.state.replace(' ', '_')} "
        f"in={one.bytes_in} out={one.bytes_out}\n"
    )


# ------------------------------------------------------------ show servers state, version 1 (management guide, same section)

STATE_COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change "
    "srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id "
    "srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port"
)
_STOPPED, _RUNNING = 0, 2
_ADMIN = {"MAINT": 1, "DRAIN": 8}  # forced by the operator
_CHECKS = {"INI": 1, "SOCKERR": 5, "L4OK": 6, "L4TOUT": 7, "L4CON": 8, "L7TOUT": 12, "L7RSP": 13, "L7OK": 15, "L7STS": 17}
_UNKNOWN, _FAILED, _PASSED = 0, 2, 3


def state_line(row: Row) -> str:
    ip, _, port = row["addr"].rpartition(":")
    status, check = row["status"], row["check_status"]
    runs = _RUNNING if is_up(status) or status == "DRAIN" else _STOPPED
    result = _UNKNOWN if check in (None, "INI") else _PASSED if check.endswith("OK") else _FAILED
    fields = (
        row["iid"],
        row["pxname"],
        row["sid"],
        row["svname"],
        ip.strip("[]"),
        runs,
        _ADMIN.get(status, 0),
        row["uweight"],
        row["initial_weight"],
        row["lastchg"],
        _CHECKS.get(check, 0),
        result,
        row.get("check_health") or 0,
        0 if check is None else 6,
        *(0, 0, 0, "-", port, "-", 0, 0, "-", "-", 0),
    )
    return " ".join(map(str, fields)) + "\n"
