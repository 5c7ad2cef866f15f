"""All guests are the user 65534, who has the files of whoever runs the VM."""

import os

from umvm.interfaces.identity import Identity, login
from umvm.routes import Identity as IdentityRoute

NOBODY = 65534


class Nobody(Identity):
    def first(self):
        return login(NOBODY, NOBODY, (NOBODY,))

    def owner(self, uid, gid):
        return (NOBODY if uid == os.geteuid() else uid), gid


def umvm_start(vm, options):
    return [IdentityRoute(Nobody())]
