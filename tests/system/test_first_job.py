"""From boot to a user's first job: uid, groups, home, workspace, cgroup, journal; limits; many at once."""

from tests.lab.access import acls, owner_and_mode
from tests.lab.booted_site import BootedSite
from tests.lab.ldap import EVERYBODY, uid


def test_from_boot_to_the_first_job_of_a_user_of_the_directory_who_has_no_home(site: BootedSite) -> None:
    """Who never logged in gets home, workspace, temp directory and an executor of its own, as itself."""
    (user,) = site.fresh_users(1)
    home, workspace = site.machine.root / "home" / user, site.machine.root / "srv/knime/workspaces" / user
    assert not home.exists()
    report = site.job(user, report="full")
    assert report["uids"] == [uid(user)] * 4
    assert report["gids"] == [EVERYBODY[1]] * 4
    assert report["groups"] == [EVERYBODY[1]]
    assert report["cgroup"].splitlines()[-1].endswith(f"/knime.slice/knime-executors.slice/knime-executor-{user}.scope")
    assert (home.stat().st_uid, home.stat().st_mode & 0o7777) == (uid(user), 0o700)
    assert owner_and_mode(workspace).endswith(" 0700")
    assert acls(workspace) == ("", "u::rwx g::--- o::---")
    assert report["may"] == {path: ["read", "write", "search"] for path in (f"/home/{user}", f"/srv/knime/temp/{user}")}
