"""People: users, invitations, passwords, sessions and limits of log-ins."""
