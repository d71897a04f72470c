// One page with three views: the list of jobs at /, one job at /jobs/<id>, several jobs compared at /compare.

import { showCompare } from "./compare.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { wireHeader } from "./header.js";

wireHeader();
const page = document.getElementById("page");
const job = location.pathname.match(/^\/jobs\/([^/]+)$/);
if (job) showJob(page, decodeURIComponent(job[1]));
else if (location.pathname === "/compare") showCompare(page);
else showJobs(page);
