"""An authority for tests, with certificates that are right and with all kinds that are not."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

from share_dist import certificates
from share_dist.certificates import Issued
from share_dist.client import Credentials
from share_dist.identity import Identity
from share_dist.wire.records import Role

YEAR = timedelta(days=365)


class Authority:
    """An authority in a folder, and what it has signed."""

    def __init__(self, folder: Path, name: str = "tests") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.issued = certificates.make_authority(name, YEAR, self.now)
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(self.issued.certificate)

    @property
    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def server(
        self, *hosts: str, name: str = "server", began_days_ago: float = 0, days: float = 365
    ) -> dict[str, Path]:
        """Make a coordinator's certificate; return the keys of a configuration."""
        began = self.now - timedelta(days=began_days_ago)
        hosts = hosts or ("127.0.0.1", "localhost")
        issued = certificates.make_server(hosts, self.issued, timedelta(days=days), began)
        certificate, key = self._write(name, issued)
        return {"tls_certificate": certificate, "tls_key": key}

    def client(
        self, name: str = "north", role: Role = "worker", *, began_days_ago: float = 0, days: float = 90, **fields: object
    ) -> Credentials:  # fmt: skip
        """Make a client's certificate; return what it shows, trusting this authority."""
        began = self.now - timedelta(days=began_days_ago)
        issued = certificates.make_client(
            Identity(name, role), self.issued, timedelta(days=days), began
        )
        certificate, key = self._write(f"{name}-{role}", issued)
        shown = {"ca": self.certificate, "certificate": certificate, "key": key, **fields}
        return Credentials(**shown)  # type: ignore[arg-type]

    def _write(self, name: str, issued: Issued) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        key.chmod(0o600)
        return certificate, key
