"""systemd: a coordinator, and one worker for each accelerator of a machine."""

from typing import Final

from share_dist.launching.plan import Plan

CONFIG: Final = "/etc/share-dist"
"""Where the units look for keys, streams and the coordinator's configuration."""

_SAFE = """\
DynamicUser=yes
NoNewPrivileges=yes
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
"""


def units(plan: Plan) -> dict[str, str]:
    """
    Render the units.

    systemd hands keys on from files that only root may read. An instance of the worker's unit
    is the number of its accelerator, and of its stream ``streams/<number>.toml``.
    """
    return {
        "share-dist-coordinator.service": _coordinator(plan),
        "share-dist-worker@.service": _worker(plan),
    }


def _coordinator(plan: Plan) -> str:
    return f"""\
[Unit]
Description=Coordinator of {plan.name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={plan.environment}/bin/share-dist coordinator serve --store {plan.store} --listen {plan.address} --log-format json --tls-certificate %d/coordinator.crt --tls-key %d/coordinator.key --tls-client-ca %d/ca.crt
LoadCredential=coordinator.crt:{CONFIG}/coordinator.crt
LoadCredential=coordinator.key:{CONFIG}/coordinator.key
LoadCredential=ca.crt:{CONFIG}/ca.crt
StateDirectory={plan.store.rpartition("/")[2]}
StateDirectoryMode=0700
Restart=always
RestartSec=1
TimeoutStopSec=30
{_SAFE}
[Install]
WantedBy=multi-user.target
"""


def _worker(plan: Plan) -> str:
    device = "Environment=CUDA_VISIBLE_DEVICES=%i\n" if plan.gpus else ""
    return f"""\
[Unit]
Description=Worker %i of {plan.name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={plan.environment}/bin/share-dist worker run {CONFIG}/streams/%i.toml --coordinator {plan.address} --resume --workdir %S/share-dist-worker-%i --ca %d/ca.crt --certificate %d/nodes.crt --key %d/nodes.key
LoadCredential=ca.crt:{CONFIG}/ca.crt
LoadCredential=nodes.crt:{CONFIG}/nodes.crt
LoadCredential=nodes.key:{CONFIG}/nodes.key
Environment=RAY_AUTH_MODE=token HOME=%S/share-dist-worker-%i
{device}StateDirectory=share-dist-worker-%i
Restart=on-failure
RestartSec=10
KillSignal=SIGINT
KillMode=mixed
TimeoutStopSec=90
{_SAFE}
[Install]
WantedBy=multi-user.target
"""
