-- A place that another branch fills.
SELECT 1;
