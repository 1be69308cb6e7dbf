// Package localpg finds the PostgreSQL server binaries of this machine and runs a private server with them.
// `pawl dev` uses it to be a whole pawl in one command; tests use it when no other server is at hand.
//
// # What it owns
//
// One folder per server:
//
//	<dir>/data        what initdb made, mode 0700
//	<dir>/run         the socket, mode 0700
//	<dir>/server.log  what the server prints; server.log.1 is that of the run before
//	<dir>/lock        held (flock) by the process that runs the server
//
// A server for which no folder is given gets a temporary one, which [Server.Stop] removes. If the process dies
// before, the folder's lock is free, and the next start of a temporary server by any process removes the folder.
//
// The path of a socket may have about 100 bytes. If the path of the data folder is too long for that, the socket
// is in a 0700 folder under /tmp, whose name is derived from the data folder, so that the DSN stays the same.
//
// # Who can reach it
//
// The server listens on no address, only on its socket, and the socket's folder is closed to other users. That
// is why local connections need no password. A caller who opens a port (Settings "listen_addresses") must give
// its roles passwords: over TCP the server asks for one.
//
// PostgreSQL refuses to run as root. When root starts it, it runs as the owner of the folder; if that is root, as
// user postgres, else as nobody. Only the given folder itself is ever given to that user, and only if the user
// cannot enter it. A parent folder may be closed to the user, such as one that root made by mktemp -d. On Linux
// the server then keeps root's privilege to search folders (CAP_DAC_READ_SEARCH). Elsewhere the start fails, and
// the error names the folder and the command that opens it.
//
// # Its life
//
//	Start ──→ running ──Stop──→ gone (a temporary folder is removed)
//	            │  ↑
//	       Kill │  │ Restart
//	   or death ↓  │
//	           dead
//
// A server with a primary (Config.Primary) begins as its standby, on a copy of its data.
//
// [Server.Done] is closed when the server dies, and [Server.Err] says why. Nothing restarts a dead server by
// itself: whoever develops with it should see that it died.
//
// # When things fail
//
//   - The process that started it is killed: on Linux the kernel tells the server to shut down (PR_SET_PDEATHSIG).
//     Elsewhere it goes on running, without an owner.
//   - A server without an owner runs on a folder: the next start there stops it first. If the server has a live
//     owner, the start fails and names the owner.
//   - The server and its owner are killed at once: the next start is an ordinary crash recovery. The process id in
//     postmaster.pid may belong to some other program by then; that does not block the start.
//   - initdb is interrupted: it works in a folder of its own that becomes data by a rename, so a half-made data
//     folder is never started.
//   - A terminal's ^C does not reach the server: it has a session of its own, so that pawl can finish its work
//     and stop the server last.
//
// The package imports pgx only to see whether the server answers. It needs a Unix.
package localpg
