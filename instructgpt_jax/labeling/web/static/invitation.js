// The code of an invitation is in the part of the address that browsers do not
// send, so that it is in no log.
"use strict";

(() => {
  const code = decodeURIComponent(location.hash.slice(1));
  if (!code) return;
  document.getElementById("token").value = code;
  history.replaceState(null, "", location.pathname);
  document.getElementById("name").focus();
})();
